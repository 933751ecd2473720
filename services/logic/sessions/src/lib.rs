//! Long-connection logic: who is online on which gateway; delivers down the gateways' own streams.
