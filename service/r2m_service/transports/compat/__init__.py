"""Routes under the paths and in the forms that trainers call already: they change only their URL.

Each dialect is a pair of messages and two small functions; what lies between them is the same use
case as of the native routes (docs/trainers.md, adr 14).
"""
