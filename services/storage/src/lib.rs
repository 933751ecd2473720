//! The storage layer: the only home of chat data; hides sharding.
