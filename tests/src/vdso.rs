//! An image as another kernel would have written it: its vdso has other code.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use cryonaut_kernel::proc::Task;
use libtest_mimic::{Failed, Trial};

use crate::catalogue::declaration;
use crate::engine::Engine;
use crate::workload::Workload;

/// The instruction that raises SIGTRAP.
const INT3: u8 = 0xcc;
const PAGE: usize = 4096;

/// `another_vdso::`: code of a vdso that would trap anywhere but at the beginning of its functions, which the restore
/// has to lead elsewhere; and what was restored so is carried again.
pub(crate) fn tests(own: &Engine) -> Vec<Trial> {
    let engines = (own.clone(), own.clone());
    vec![Trial::test("another_vdso::memory::vdso_functions", move || {
        let found = declaration("memory/vdso_functions").ok_or("there is no such workload")?;
        let mut workload = Workload::start_with(found, engines, false)?;
        let before = place_of_vdso(&workload)?;
        workload.checkpoint()?;
        replace_code(&workload.images())?;
        workload.restore()?;
        if place_of_vdso(&workload)? == before {
            return Err("this kernel's vdso is where the program's was".into());
        }
        workload.checkpoint()?;
        workload.restore()?;
        Ok(workload.finish()?)
    })]
}

fn place_of_vdso(workload: &Workload) -> Result<u64, Failed> {
    let maps = Task::open(workload.pid())?.maps()?;
    Ok(maps.iter().find(|vma| vma.special() == Some(b"vdso")).ok_or("it has no vdso")?.start)
}

/// Overwrites the code of this kernel's vdso wherever an image has it.
fn replace_code(images: &Path) -> Result<(), Failed> {
    let vdso = own_vdso().map_err(|e| format!("cannot read the own vdso: {e}"))?;
    let code = first_function(&vdso).ok_or("the vdso has no functions")?;
    let mut replaced = 0;
    for entry in fs::read_dir(images)? {
        let path = entry?.path();
        if !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pages-")) {
            continue;
        }
        let pages = fs::read(&path)?;
        let file = OpenOptions::new().write(true).open(&path)?;
        for at in (0..pages.len()).step_by(PAGE).filter(|at| pages[*at..].starts_with(&vdso)) {
            file.write_all_at(&vec![INT3; vdso.len() - code], (at + code) as u64)?;
            replaced += 1;
        }
    }
    if replaced == 0 { Err("the image has no vdso".into()) } else { Ok(()) }
}

fn own_vdso() -> io::Result<Vec<u8>> {
    let task = Task::current().map_err(io::Error::other)?;
    let maps = task.maps().map_err(io::Error::other)?;
    let vdso = maps.iter().find(|vma| vma.special() == Some(b"vdso")).ok_or(io::ErrorKind::NotFound)?;
    let mut code = vec![0; (vdso.end - vdso.start) as usize];
    fs::File::open("/proc/self/mem")?.read_exact_at(&mut code, vdso.start)?;
    Ok(code)
}

/// Where in an ELF image the first function of its symbol table by address begins.
fn first_function(image: &[u8]) -> Option<usize> {
    let word = |at: usize| image.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    let headers = word(32)? as usize;
    let dynamic = (0..8).map(|i| headers + i * 56).find(|at| image.get(*at..at + 4) == Some(&[2, 0, 0, 0]))?;
    let dynamic = word(dynamic + 8)? as usize;
    let tagged =
        |tag: u64| (0..64).map(|i| dynamic + i * 16).find(|at| word(*at) == Some(tag)).and_then(|at| word(at + 8));
    let (strings, symbols) = (tagged(5)? as usize, tagged(6)? as usize);
    let values = (symbols..strings).step_by(24).filter_map(|at| word(at + 8));
    values.filter(|value| *value != 0).min().map(|value| value as usize)
}
