"""The admin API by domain: a table of endpoints and the class whose methods answer them, one file each."""
