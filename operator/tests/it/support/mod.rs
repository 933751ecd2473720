//! What several of these tests need.

pub(crate) mod crds;
pub(crate) mod fleet;
pub(crate) mod rendered;
pub(crate) mod rules;
pub(crate) mod writer;
