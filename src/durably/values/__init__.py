"""Users' values as JSON: encoding, codecs of annotated types, types of outputs."""
