"""From a job to a recorded verdict, and to what a person decides."""
