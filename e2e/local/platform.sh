# Installs the platform on a running cluster.
platform_up() { say "platform: later"; }
