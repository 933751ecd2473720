//! The one doorway of a message: check, then append; used by api, gateway and business.
//!
//! What every sender meets stands here once: the bounds of a draft ([`draft`]), the way into storage ([`doorway`]), the rate of a
//! sender ([`limit`]) and the JSON of a message ([`json`]). It never knows how a client is connected.

pub mod doorway;
pub mod draft;
pub mod json;
pub mod limit;

pub use doorway::Doorway;
pub use draft::{Door, Draft, Target};
pub use limit::Limiter;
