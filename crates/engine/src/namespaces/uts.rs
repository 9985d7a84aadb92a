//! Uts namespaces (uts_namespaces(7)): the names of the host.

use super::{Building, Dumping, Halves, Own};
use crate::Result;
use cryonaut_image::ImageKind;
use cryonaut_image::records::UtsnsEntry;
use cryonaut_kernel::sys::namespace::within;
use std::os::fd::AsFd;

pub const HALVES: Halves = Halves { dump, build, at_birth: true };

fn dump(cx: &mut Dumping<'_>, own: &Own) -> Result<()> {
    let told = within(&[own.file.as_fd()], rustix::system::uname).map_err(own.failed("ask for its names"))?;
    let (nodename, domainname) = (told.nodename().to_bytes().to_vec(), told.domainname().to_bytes().to_vec());
    let record = UtsnsEntry { nodename, domainname };
    Ok(cx.images.write_one(ImageKind::Utsns, u64::from(own.id), &record)?)
}

fn build(cx: &mut Building<'_>, own: &Own) -> Result<()> {
    let record: UtsnsEntry = cx.images.read_one(ImageKind::Utsns, u64::from(own.id))?;
    let name = || {
        rustix::system::sethostname(&record.nodename)?;
        rustix::system::setdomainname(&record.domainname)
    };
    within(&[own.file.as_fd()], name).and_then(|named| named).map_err(own.failed("give it its names"))
}
