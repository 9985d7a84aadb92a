//! Freeze, collect, dump; plan, build, restore.
