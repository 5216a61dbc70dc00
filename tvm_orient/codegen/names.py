"""Fixes the names that TE stages, schedules, TIR passes and CUDA source passes know each other by.

A schedule finds a block by its name, and a pass over CUDA source finds a buffer by what TVM prints of that name. Both take it from here,
so that a rename reaches every side. Needs no compiler.
"""

from __future__ import annotations

# ---- parameters of every kernel, in TE and (with POINTER) in CUDA source -----------------------

X = "x"  # source image: x of conv and conv_dw, dy of conv_dx
W = "w"  # weights (channels, taps)
BIAS = "bias"  # one value a channel
DY = "dy"  # gradient of the output: a parameter of conv_dw alone
Y = "y"  # result: y of conv, dx of conv_dx, dw of conv_dw; also the block that writes it

# ---- blocks and the buffers that they write ----------------------------------------------------

STAGE = "stage"  # source image as it is staged, padded with its halo where the configuration has one
DYS = "dys"  # dy as it is staged, padded to whole vectors
FOLDED = "folded"  # weights of colliding taps added, tap by tap
ACC = "acc"  # sums, rows rounded up to whole vectors
OWN = "own"  # results stored by place on a sheared plane, until `restore_layout.in_place` moves them
FIRST = "first"  # values of a line of the plane before it leaves the plane at one side
SECOND = "second"  # values of that line after it has come back at the other side
FIRST_SUM = "first_sum"  # sums over FIRST
SECOND_SUM = "second_sum"  # sums over SECOND
LANES = "lanes"  # conv_dw: partial sums of the lanes of a block
GROUPS = "groups"  # conv_dw: LANES summed in runs of neighbours
PART = "part"  # conv_dw: sums of an image and band; also the workspace that holds them
SLICES = "slices"  # conv_dw: sums of every so-many-th image
CONFINED = "confined"  # conv_dw on a CPU: weights that are summed again where they are not finite

# ---- scopes of memory, and how TVM prints a buffer in CUDA source ------------------------------

GLOBAL = "global"  # memory of the device
SHARED = "shared"  # memory of a block of threads
LOCAL = "local"  # registers of a thread
POINTER = "_ptr"  # ends the name of every buffer in CUDA source
SHARED_POINTER = f"_{SHARED}{POINTER}"  # ends the name of a buffer in shared memory
LOCAL_POINTER = f"_{LOCAL}{POINTER}"  # ends the name of a buffer in registers
X_POINTER = f"{X}{POINTER}"  # parameter X in CUDA source
W_SHARED = f"{W}_{SHARED}"  # buffer of W where a schedule keeps a copy in shared memory
STAGE_SHARED = f"{STAGE}_{SHARED}"  # buffer of STAGE where a schedule keeps it in shared memory
STAGE_LOCAL_POINTER = f"{STAGE}{LOCAL_POINTER}"  # buffer of STAGE in CUDA source where a schedule keeps it in registers
OWN_SHARED = f"{OWN}_{SHARED}"  # buffer of OWN, which is always in shared memory
CONDITION_VALUE = "condval"  # begins the name of what TVM makes of an if_then_else: a variable that both branches set
COMMON_VALUE = "cse_v"  # begins the name of a subexpression that TVM computes once
KERNEL_MARK = 'extern "C"'  # begins the first kernel of a source: helper functions are put before it
BARRIER = "__syncthreads();"  # waits for all threads of a block
THREAD = "((int)threadIdx.x)"  # index of a thread in its block

# ---- keys of annotations and attributes, names of loops ----------------------------------------

PREFETCH = "tvm_orient.ahead"  # annotation of a loop every turn of which fetches a piece of a later task (`prefetch.prefetched`)
DOUBLE_BUFFER = "tvm_orient_ahead"  # annotation of a loop over tiles, its value the channels of a tile (`double_buffer`); also that loop's name in the source
SKIP_RENORMALIZE = "tvm_orient.settled"  # attribute of a function one of whose groups has long code where every index is known (`lower`)
BRANCH = "tvm_orient_branch"  # loop that runs once or not at all: `group_branches.branches` makes it an if
ANNOTATIONS = (PREFETCH, DOUBLE_BUFFER)  # those that a rewrite of TIR must consume

# ---- functions and variables that rewritten CUDA source calls ----------------------------------

COPY = "tvm_orient_copy"  # asynchronous copy from global to shared memory (`async_copy`)
ARRIVED = "tvm_orient_arrived"  # waits for all asynchronous copies of the thread
SENT = "tvm_orient_sent"  # ends a group of asynchronous copies
ARRIVED_BUT_LAST = "tvm_orient_arrived_but_last"  # waits for all groups of copies but the last
HIDDEN = "tvm_orient_hidden"  # a value of which the compiler may conclude nothing
HIDDEN_THREAD = "tvm_orient_thread"  # index of a thread of which the compiler may conclude nothing
LOAD = "tvm_orient_load"  # predicated load from global memory (`device_helpers`)
STORE = "tvm_orient_store"  # predicated store to shared memory (`device_helpers`)
VALUE = "tvm_orient_value"  # one value of four of half precision (`packed_reads`)

# ---- parts of a layer that are compiled apart (`part_functions`, `ptx`) ------------------------

TASK = "task"  # number of the task that a function of a part computes, from 0 for the part's first
BATCH = "n"  # run-time number of images, in TE, in TIR and in CUDA source
FIRST_KERNEL = "main_kernel"  # TVM's name of a function's first kernel; those after it are numbered from 1


def kernel_names(op: str, *, bias: bool) -> tuple[str, ...]:
    """Returns the names that kernels know the operands of an op by, in parameter order."""
    if op == "conv_dw":
        return X, DY, PART, Y
    return (X, W, BIAS, Y) if bias else (X, W, Y)
