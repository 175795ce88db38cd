//! Documents that name files, numbers and texts of the code: what they name is there.

mod architecture;
mod deploy;
mod tree;
mod troubleshooting;
