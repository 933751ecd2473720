//! The model: the same operations on maps in memory, as plainly as they can be said. Tests compare the real engine with it.
