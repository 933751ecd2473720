//! What status says of a ChatCluster.
