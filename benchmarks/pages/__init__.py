"""Documents from the JSON that benchmarks write: `tables` fills in tables, `plots` draws pictures."""
