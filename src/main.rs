//! The `segft` program.
fn main() {}
