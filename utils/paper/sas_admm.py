"""What the SAS-ADMM paper and its program claim of ResNets on CIFAR-10."""

# Network: the factor by which weights get fewer. No accuracy stands in paper, abstract or program,
# only that it is maintained.
PUBLISHED = {("resnet-basic", 32): 6.61, ("resnet-basic", 56): 9.93}
# The share of each convolution that is cut: 32's from the program, 56's the one that gives its
# factor (9.9292). The program has settings for 32 only: those for 56 are the same here.
SHARES = {32: 0.85, 56: 0.9}
