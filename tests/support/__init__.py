"""What tests share: operands and comparisons, a stand-in for a GPU, and tables of cases."""
