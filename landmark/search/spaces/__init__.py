"""Search spaces: parameters, their domains, and the samplers that propose trials."""
