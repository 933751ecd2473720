//! ImBusiness: the internal gRPC endpoint of business lines.
