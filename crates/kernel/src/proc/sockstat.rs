//! `/proc/PID/net/sockstat` and `sockstat6`: how many sockets of the internet protocols a network namespace has.

use super::text::{self, Malformed, OrMalformed};
use super::{Result, Task};

impl Task {
    /// Sockets of TCP, UDP, UDP-Lite and raw ones in the network namespace of the task that have an address, connections
    /// and those that listen among them: whoever could be sent something from there.
    pub fn inet_sockets(&self) -> Result<u64> {
        let four: u64 = self.read_as("net/sockstat", parse)?;
        // There is none where the kernel was started without IPv6.
        Ok(four + self.read_as("net/sockstat6", parse).unwrap_or_default())
    }
}

/// The sum of what is `inuse`.
pub fn parse(text: &[u8]) -> std::result::Result<u64, Malformed> {
    let mut sum = 0;
    for line in text::lines(text) {
        let mut words = line.split(|&byte| byte == b' ');
        let kind = words.next().or_malformed("protocol", line)?;
        let counts = words.next() == Some(b"inuse");
        // Fragments are no sockets.
        if counts && !kind.starts_with(b"FRAG") {
            sum += words.next().and_then(text::dec::<u64>).or_malformed("count", line)?;
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_what_has_an_address() {
        let text =
            b"sockets: used 41\nTCP: inuse 3 orphan 0 tw 7 alloc 5 mem 1\nUDP: inuse 2 mem 0\nUDPLITE: inuse 0\n\
                     RAW: inuse 1\nFRAG: inuse 4 memory 0\n";
        assert_eq!(parse(text).unwrap(), 6);
        assert!(parse(b"TCP: inuse many\n").is_err());
    }

    #[test]
    fn a_socket_that_listens_is_counted() {
        let before = Task::current().unwrap().inet_sockets().unwrap();
        let _listeners: Vec<_> = (0..3).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        assert!(Task::current().unwrap().inet_sockets().unwrap() > 0, "{before} before");
    }
}
