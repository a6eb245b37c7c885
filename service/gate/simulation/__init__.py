"""How often the gate promotes, asks and rejects: exact rates, simulated lifetimes, plans."""
