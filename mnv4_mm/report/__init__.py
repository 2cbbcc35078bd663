"""Tables: parity of exported files, complexity of nets, published weights."""
