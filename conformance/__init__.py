"""What servers say to Tidegate and to its peers, in virtual time: `make conformance` prints docs/conformance-peers.md."""
