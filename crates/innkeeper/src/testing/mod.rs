//! What tests of this library and of programs that embed it need: trials that every driver must pass, and a look at what they leave.
//!
//! It is no part of the product: it stands behind the feature `testing`.

pub mod conformance;
pub mod faults;
pub mod loaders;
pub mod matrix;
pub mod pvh;
pub mod traces;
