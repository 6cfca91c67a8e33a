"""What client and server must agree on: the wire messages, the error table, tensor values.

Torch-free and framework-free; the client and the service both import it, it imports neither.
"""
