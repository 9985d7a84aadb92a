//! Certificates for the tests of TLS.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Makes an authority, and a certificate of both ends, by openssl(1); the options that name them.
pub fn tls_options(dir: &Path) -> String {
    let run = |arguments: &str| {
        let done = Command::new("openssl").args(arguments.split(' ')).current_dir(dir).output().expect("openssl");
        assert!(done.status.success(), "{arguments}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1\n").expect("a file");
    run(&format!("req {key} -keyout key.pem -out request -subj /CN=127.0.0.1"));
    run("x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem");
    let file = |name: &str| dir.join(name).display().to_string();
    format!("--tls --tls-cacert {} --tls-cert {} --tls-key {}", file("ca.pem"), file("cert.pem"), file("key.pem"))
}
