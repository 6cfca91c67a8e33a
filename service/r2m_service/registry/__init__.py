"""What a server remembers: metadata by SQLAlchemy (`sql`) and files by fsspec (`blobs`).

`SqlRegistry` and `BlobStore` implement the application's ports `Registry` and `Blobs`. A blob is
written before the row that names it, so a row never names a file that is not whole and on disk.
"""
