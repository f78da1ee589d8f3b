"""`python -m xclip_search`, the same as the console command."""

from xclip_search import main

main()
