"""Plans: experiments written as a methods section."""
