//! Gives every dependency one set of features, so that building one package or all of them compiles it once. Holds no code.
