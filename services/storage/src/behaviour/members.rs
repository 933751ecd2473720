//! Members of groups, in memory and in a real Valkey alike.
