//! The one doorway of a message: check, then append; used by api, gateway and business.
