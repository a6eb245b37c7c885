"""From a queued update to its recorded verdict, and the decisions of people."""
