"""The page at `/`: what it reads, how it hears of changes, and the page itself."""
