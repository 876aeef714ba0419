"""`python -m fedlearn`."""

from fedlearn.cli import main

if __name__ == "__main__":
    main()
