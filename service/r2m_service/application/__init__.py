"""The use cases, with the ports they need. Both transports sit on this one layer."""
