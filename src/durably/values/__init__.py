"""Users' values as JSON: encoding, codecs of annotated types, and the types of outputs."""
