"""Request and answer bodies of the API as typed models, a module a noun."""
