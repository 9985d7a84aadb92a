//! Safe wrappers for the kernel interfaces that no good crate covers.
#![allow(unsafe_code)]
