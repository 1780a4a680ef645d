"""Commands of the console command ``cellseg-search`` that look after a search; those that make one are beside them."""
