"""How fast artifacts explain, beside other ways to compute the same: `sptrace bench`.

Importing this package imports no torch; the sides that need it import it in processes of their own.
"""
