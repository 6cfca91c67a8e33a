"""How calls arrive: HTTP and gRPC over one application. They decode, encode and bound."""
