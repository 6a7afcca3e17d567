"""What tests of several folders share: small runs, tiny models in the true formats, stand-ins for services."""
