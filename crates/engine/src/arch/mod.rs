//! What the records say in one architecture's words: registers and extended
//! state. One folder per architecture, with the same names in each.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;
