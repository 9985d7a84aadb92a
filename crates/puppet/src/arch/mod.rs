//! What belongs to one processor architecture: registers, the trampoline, the
//! signal frame. One folder per architecture, with the same names in each.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("Cryonaut runs on x86_64; a further architecture is one folder beside arch/x86_64");
