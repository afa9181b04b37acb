"""Every configuration key with its default and meaning: the compatibility contract with PySlowFast.

Names, types and defaults are PySlowFast's, so its YAML files load here unchanged; keys that only we have stand at
the end. Lengths are pixels, frames or epochs as the comment says; [stage][pathway] is a list over the four stages of
lists over the pathways, slow first.
"""

from typing import Any

from fvcore.common.config import CfgNode

_C = CfgNode()


# ------------------------------ the job ------------------------------
# Prefix of checkpoint names; "ssl" and "ssl_eval" select the self-supervised jobs and their checkpoints.
_C.TASK = ""
# Processes on this machine, one GPU each; 0 runs one process on the CPU.
_C.NUM_GPUS = 1
# Number of machines.
_C.NUM_SHARDS = 1
# Index of this machine, 0 .. NUM_SHARDS-1.
_C.SHARD_ID = 0
# Folder of everything a job writes: logs, checkpoints, results.
_C.OUTPUT_DIR = "."
# Seed of initial weights, data order, augmentation and dropout.
_C.RNG_SEED = 1
# Iterations between two log lines, and the window of the medians in them.
_C.LOG_PERIOD = 10
# Log parameters, FLOPs and activations of the model before the job starts.
_C.LOG_MODEL_INFO = True
# Backend of torch.distributed on GPUs; on the CPU it is gloo.
_C.DIST_BACKEND = "nccl"

# ------------------------------ CONTRASTIVE ------------------------------
_C.CONTRASTIVE = CfgNode()
# Temperature of the contrastive losses and of the kNN vote.
_C.CONTRASTIVE.T = 0.07
# Width of embeddings, queues, memories and prototypes; equals MODEL.NUM_CLASSES, the output of the projection.
_C.CONTRASTIVE.DIM = 128
# Rows of the memory bank and of the kNN bank: the number of training videos.
_C.CONTRASTIVE.LENGTH = 239975
# Keys in the MoCo queue, or negatives drawn from the memory bank.
_C.CONTRASTIVE.QUEUE_LEN = 65536
# Share of the old value in the moving average of the key encoder, or of a memory row.
_C.CONTRASTIVE.MOMENTUM = 0.5
# Raise that share to 1 along a cosine over SOLVER.MAX_EPOCH.
_C.CONTRASTIVE.MOMENTUM_ANNEALING = False
# Method: moco, byol, simclr, swav, or mem (instance discrimination against a memory bank).
_C.CONTRASTIVE.TYPE = "mem"
# Interpolate in time when a "2d" memory bank is read and written.
_C.CONTRASTIVE.INTERP_MEMORY = False
# "1d" has one row per video; "2d" one per video and moment.
_C.CONTRASTIVE.MEM_TYPE = "1d"
# Classes of the kNN vote.
_C.CONTRASTIVE.NUM_CLASSES_DOWNSTREAM = 400
# Linear layers of the projection head; 1 is a plain linear layer.
_C.CONTRASTIVE.NUM_MLP_LAYERS = 1
# Hidden width of the projection and predictor heads.
_C.CONTRASTIVE.MLP_DIM = 2048
# Batch norm inside those heads.
_C.CONTRASTIVE.BN_MLP = False
# Share the statistics of that batch norm between BN.NUM_SYNC_DEVICES processes.
_C.CONTRASTIVE.BN_SYNC_MLP = False
# Shuffle the key clips of MoCo within a machine (True) or over all processes.
_C.CONTRASTIVE.LOCAL_SHUFFLE_BN = True
# Put the keys of all clips into the queue rather than those of the first.
_C.CONTRASTIVE.MOCO_MULTI_VIEW_QUEUE = False
# Smallest gap between two clips of a video, in source frames; below 0 clips may overlap.
_C.CONTRASTIVE.DELTA_CLIPS_MIN = float("-inf")
# Largest gap between two clips of a video, in source frames.
_C.CONTRASTIVE.DELTA_CLIPS_MAX = float("inf")
# Linear layers of each predictor behind the projection; BYOL takes exactly one predictor.
_C.CONTRASTIVE.PREDICTOR_DEPTHS = []
# Back-propagate clip by clip, which needs less memory.
_C.CONTRASTIVE.SEQUENTIAL = False
# Accepted, has no effect.
_C.CONTRASTIVE.SIMCLR_DIST_ON = True
# Features in the SwAV queue, over all processes; 0 is none. (The spelling is part of the contract.)
_C.CONTRASTIVE.SWAV_QEUE_LEN = 0
# Keep a bank of training features and classify with it by nearest neighbours.
_C.CONTRASTIVE.KNN_ON = True

# ------------------------------ BN ------------------------------
_C.BN = CfgNode()
# Recompute the running statistics on training batches before each evaluation and checkpoint.
_C.BN.USE_PRECISE_STATS = False
# Batches of that recomputation.
_C.BN.NUM_BATCHES_PRECISE = 200
# Weight decay of batch-norm weights and biases (those of sub-BN have SOLVER.WEIGHT_DECAY).
_C.BN.WEIGHT_DECAY = 0.0
# batchnorm, sub_batchnorm, sync_batchnorm or sync_batchnorm_apex.
_C.BN.NORM_TYPE = "batchnorm"
# Parts of a batch with statistics of their own in sub_batchnorm.
_C.BN.NUM_SPLITS = 1
# Processes of a machine that share statistics in sync_batchnorm.
_C.BN.NUM_SYNC_DEVICES = 1
# Share them between all processes instead; NUM_SYNC_DEVICES is then None.
_C.BN.GLOBAL_SYNC = False

# ------------------------------ TRAIN ------------------------------
_C.TRAIN = CfgNode()
# Run the training job.
_C.TRAIN.ENABLE = True
# Stop when the loss exceeds this times the mean of the five losses before it; 0 is off.
_C.TRAIN.KILL_LOSS_EXPLOSION_FACTOR = 0.0
# Data set of training and validation, by its registered name in any case.
_C.TRAIN.DATASET = "kinetics"
# Clips per step and machine; each process takes its NUM_GPUS-th part.
_C.TRAIN.BATCH_SIZE = 64
# Epochs between two evaluations.
_C.TRAIN.EVAL_PERIOD = 10
# Epochs between two checkpoints; the last epoch always has one.
_C.TRAIN.CHECKPOINT_PERIOD = 10
# Continue from the newest checkpoint in OUTPUT_DIR.
_C.TRAIN.AUTO_RESUME = True
# Weights to start from.
_C.TRAIN.CHECKPOINT_FILE_PATH = ""
# Format of that file: pytorch or caffe2.
_C.TRAIN.CHECKPOINT_TYPE = "pytorch"
# The file holds a 2-D network: repeat its kernels over time, divided by their length.
_C.TRAIN.CHECKPOINT_INFLATE = False
# Take the weights only: not the epoch, the optimizer and the scaler.
_C.TRAIN.CHECKPOINT_EPOCH_RESET = False
# Texts to cut out of the parameter names of the file (first occurrence of each).
_C.TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN = ()
# Train under float16 autocast with loss scaling.
_C.TRAIN.MIXED_PRECISION = False
# Fit the transformer weights of the file to the model: patch and pooling kernels, position tables.
_C.TRAIN.CHECKPOINT_IN_INIT = False

# ------------------------------ AUG ------------------------------
_C.AUG = CfgNode()
# RandAugment and random erasing in training; for ImageNet the whole recipe of transformers.
_C.AUG.ENABLE = False
# Augmented copies of each clip; the batch grows by this factor.
_C.AUG.NUM_SAMPLE = 1
# Strength of brightness, contrast and saturation jitter; ImageNet, where AA_TYPE is empty.
_C.AUG.COLOR_JITTER = 0.4
# RandAugment as rand-m<magnitude>-n<operations>-mstd<noise>-inc<0 or 1>; empty is off.
_C.AUG.AA_TYPE = "rand-m9-mstd0.5-inc1"
# Resampling of RandAugment and of ImageNet resizing: bilinear, bicubic or random.
_C.AUG.INTERPOLATION = "bicubic"
# Probability of random erasing.
_C.AUG.RE_PROB = 0.25
# Filling of the erased box: const (0), rand (one value per channel) or pixel (noise).
_C.AUG.RE_MODE = "pixel"
# Most boxes erased in a clip.
_C.AUG.RE_COUNT = 1
# Accepted, has no effect.
_C.AUG.RE_SPLIT = False
# Samples bring a mask of hidden cells, for masked pre-training.
_C.AUG.GEN_MASK_LOADER = False
# Hide the same cells in every step.
_C.AUG.MASK_TUBE = False
# Hide whole time steps.
_C.AUG.MASK_FRAMES = False
# Grid of the mask: [T, H, W] cells.
_C.AUG.MASK_WINDOW_SIZE = [8, 7, 7]
# Fraction of cells or tokens that are hidden.
_C.AUG.MASK_RATIO = 0.0
# Largest hidden block of an image, in cells; None is no limit.
_C.AUG.MAX_MASK_PATCHES_PER_BLOCK = None

# ------------------------------ VIS_MASK ------------------------------
_C.VIS_MASK = CfgNode()
# The test job of a masked model writes its input, the masked input and the reconstruction as pictures.
_C.VIS_MASK.ENABLE = False

# ------------------------------ MIXUP ------------------------------
_C.MIXUP = CfgNode()
# Mix each training batch with itself in reverse order.
_C.MIXUP.ENABLE = False
# Beta parameter of mixup; 0 is off.
_C.MIXUP.ALPHA = 0.8
# Beta parameter of cutmix; 0 is off.
_C.MIXUP.CUTMIX_ALPHA = 1.0
# Probability that a batch is mixed; its labels are smoothed in any case.
_C.MIXUP.PROB = 1.0
# Probability of cutmix where both are on.
_C.MIXUP.SWITCH_PROB = 0.5
# Label smoothing of the targets.
_C.MIXUP.LABEL_SMOOTH_VALUE = 0.1

# ------------------------------ TEST ------------------------------
_C.TEST = CfgNode()
# Run the test job.
_C.TEST.ENABLE = True
# Data set of the test job.
_C.TEST.DATASET = "kinetics"
# Clips per test step and machine.
_C.TEST.BATCH_SIZE = 8
# Weights to test; empty takes the newest checkpoint in OUTPUT_DIR.
_C.TEST.CHECKPOINT_FILE_PATH = ""
# Temporal clips per video; -1 tests 1, 3, 5, 7 and 10 in turn.
_C.TEST.NUM_ENSEMBLE_VIEWS = 10
# Crops per clip along its longer side, 1 to 3.
_C.TEST.NUM_SPATIAL_CROPS = 3
# Format of the checkpoint: pytorch or caffe2.
_C.TEST.CHECKPOINT_TYPE = "pytorch"
# Name of a pickle in OUTPUT_DIR for [scores, labels] of all videos; empty writes none.
_C.TEST.SAVE_RESULTS_PATH = ""
# Values of NUM_ENSEMBLE_VIEWS to test one after another.
_C.TEST.NUM_TEMPORAL_CLIPS = []

# ------------------------------ RESNET ------------------------------
_C.RESNET = CfgNode()
# Residual transform: bottleneck_transform, basic_transform or x3d_transform.
_C.RESNET.TRANS_FUNC = "bottleneck_transform"
# Groups of the 3x3 convolution (ResNeXt).
_C.RESNET.NUM_GROUPS = 1
# Channels per group in the first stage; 64 is a ResNet.
_C.RESNET.WIDTH_PER_GROUP = 64
# In-place ReLU in the residual blocks; ResNet models only.
_C.RESNET.INPLACE_RELU = True
# Spatial stride in the first 1x1 convolution rather than in the 3x3; ResNet models and X3D.
_C.RESNET.STRIDE_1X1 = False
# The last batch norm of each residual branch starts at 0.
_C.RESNET.ZERO_INIT_FINAL_BN = False
# The last convolution of each residual branch starts at 0.
_C.RESNET.ZERO_INIT_FINAL_CONV = False
# Layers: 18, 50 or 101.
_C.RESNET.DEPTH = 50
# [stage][pathway] How many blocks, from the first, have the temporal kernel; the others have 1.
_C.RESNET.NUM_BLOCK_TEMP_KERNEL = [[3], [4], [6], [3]]
# [stage][pathway] Spatial stride of the first block.
_C.RESNET.SPATIAL_STRIDES = [[1], [2], [2], [2]]
# [stage][pathway] Spatial dilation of the 3x3 convolution.
_C.RESNET.SPATIAL_DILATIONS = [[1], [1], [1], [1]]

# ------------------------------ X3D ------------------------------
_C.X3D = CfgNode()
# Channels, as a multiple.
_C.X3D.WIDTH_FACTOR = 1.0
# Blocks per stage, as a multiple (rounded up).
_C.X3D.DEPTH_FACTOR = 1.0
# Inner width of a block over its output width.
_C.X3D.BOTTLENECK_FACTOR = 1.0
# Width of the layer before the classifier.
_C.X3D.DIM_C5 = 2048
# Channels of the stem, before WIDTH_FACTOR.
_C.X3D.DIM_C1 = 12
# Double the channels of the first stage.
_C.X3D.SCALE_RES2 = False
# Batch norm on the layer before the classifier.
_C.X3D.BN_LIN5 = False
# The 3x3x3 convolution is depthwise.
_C.X3D.CHANNELWISE_3x3x3 = True

# ------------------------------ NONLOCAL ------------------------------
_C.NONLOCAL = CfgNode()
# [stage][pathway] Indices of the blocks that a non-local block follows.
_C.NONLOCAL.LOCATION = [[[]], [[]], [[]], [[]]]
# [stage][pathway] Temporal segments that attend only within themselves.
_C.NONLOCAL.GROUP = [[1], [1], [1], [1]]
# Weighting: softmax or dot_product.
_C.NONLOCAL.INSTANTIATION = "dot_product"
# [stage][pathway] Max-pooling of keys and values, [t, h, w].
_C.NONLOCAL.POOL = [[[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]]]

# ------------------------------ MODEL ------------------------------
_C.MODEL = CfgNode()
# Architecture: 2d, c2d, i3d, slow, slow_c2d, slow_i3d, slowfast, x3d, mvit or maskmvit.
_C.MODEL.ARCH = "slowfast"
# Registered name of the model class.
_C.MODEL.MODEL_NAME = "SlowFast"
# Number of outputs.
_C.MODEL.NUM_CLASSES = 400
# cross_entropy, bce, bce_logit, soft_cross_entropy, contrastive_loss, mse or multi_mse.
_C.MODEL.LOSS_FUNC = "cross_entropy"
# Architectures that take one clip.
_C.MODEL.SINGLE_PATHWAY_ARCH = ["2d", "c2d", "i3d", "slow", "x3d", "mvit", "maskmvit"]
# Architectures that take a slow and a fast clip.
_C.MODEL.MULTI_PATHWAY_ARCH = ["slowfast"]
# Dropout before the classifier.
_C.MODEL.DROPOUT_RATE = 0.5
# Stochastic depth of X3D in its last stage; earlier stages have less.
_C.MODEL.DROPCONNECT_RATE = 0.0
# Standard deviation of the initial linear weights of conv nets.
_C.MODEL.FC_INIT_STD = 0.01
# Activation of the scores: softmax, sigmoid or none.
_C.MODEL.HEAD_ACT = "softmax"
# Recompute activations in the backward pass to save memory.
_C.MODEL.ACT_CHECKPOINT = False
# No gradient below the classifier (linear evaluation).
_C.MODEL.DETACH_FINAL_FC = False
# Batch norm uses and keeps its running statistics in training.
_C.MODEL.FROZEN_BN = False
# Send gradients between processes as float16.
_C.MODEL.FP16_ALLREDUCE = False

# ------------------------------ MVIT ------------------------------
_C.MVIT = CfgNode()
# Pooling in attention: conv, conv_unshared, avg or max.
_C.MVIT.MODE = "conv"
# Pool before the projections to queries, keys and values.
_C.MVIT.POOL_FIRST = False
# Add a class token.
_C.MVIT.CLS_EMBED_ON = True
# Kernel of the patch convolution, [t, h, w].
_C.MVIT.PATCH_KERNEL = [3, 7, 7]
# Stride of the patch convolution, [t, h, w].
_C.MVIT.PATCH_STRIDE = [2, 4, 4]
# Padding of the patch convolution, [t, h, w].
_C.MVIT.PATCH_PADDING = [2, 4, 4]
# Patches of images: kernel, stride and padding are [h, w].
_C.MVIT.PATCH_2D = False
# Width of the first block.
_C.MVIT.EMBED_DIM = 96
# Heads of the first block.
_C.MVIT.NUM_HEADS = 1
# Hidden width of the MLP over its input width.
_C.MVIT.MLP_RATIO = 4.0
# Bias in the projections to queries, keys and values.
_C.MVIT.QKV_BIAS = True
# Stochastic depth of the last block; the rate grows linearly from 0.
_C.MVIT.DROPPATH_RATE = 0.1
# Initial scale of the residual branches; 0 has no such scale.
_C.MVIT.LAYER_SCALE_INIT_VALUE = 0.0
# Number of blocks.
_C.MVIT.DEPTH = 16
# Normalisation: layernorm.
_C.MVIT.NORM = "layernorm"
# [[block, factor], ...] Growth of the width.
_C.MVIT.DIM_MUL = []
# [[block, factor], ...] Growth of the number of heads.
_C.MVIT.HEAD_MUL = []
# [[block, t, h, w], ...] Stride of the pooling of keys and values.
_C.MVIT.POOL_KV_STRIDE = []
# Instead of POOL_KV_STRIDE: [t, h, w] of the first block, divided by each query stride that follows.
_C.MVIT.POOL_KV_STRIDE_ADAPTIVE = None
# [[block, t, h, w], ...] Stride of the pooling of queries.
_C.MVIT.POOL_Q_STRIDE = []
# Pooling kernel [t, h, w]; None is the stride + 1 where that is above 1.
_C.MVIT.POOL_KVQ_KERNEL = None
# No weight decay on position tables and the class token.
_C.MVIT.ZERO_DECAY_POS_CLS = True
# Layer norm after patches and positions.
_C.MVIT.NORM_STEM = False
# Position table as the sum of a spatial and a temporal one.
_C.MVIT.SEP_POS_EMBED = False
# Dropout after positions, attention and MLP.
_C.MVIT.DROPOUT_RATE = 0.0
# Add absolute positions.
_C.MVIT.USE_ABS_POS = True
# Relative positions in space.
_C.MVIT.REL_POS_SPATIAL = False
# Relative positions in time.
_C.MVIT.REL_POS_TEMPORAL = False
# Relative positions start at 0.
_C.MVIT.REL_POS_ZERO_INIT = False
# Add the pooled queries to the output of attention.
_C.MVIT.RESIDUAL_POOLING = False
# The width grows in attention (MViTv2) rather than in the MLP (MViTv1).
_C.MVIT.DIM_MUL_IN_ATT = False
# Three projections instead of a joint one.
_C.MVIT.SEPARATE_QKV = False
# Factor on the initial weights of the classifier.
_C.MVIT.HEAD_INIT_SCALE = 1.0
# Classify the mean of the tokens rather than the class token.
_C.MVIT.USE_MEAN_POOLING = False
# Fixed sine-cosine positions; USE_ABS_POS is on and SEP_POS_EMBED off.
_C.MVIT.USE_FIXED_SINCOS_POS = False

# ------------------------------ MVIT.REV ------------------------------
_C.MVIT.REV = CfgNode()
# Reversible blocks, which store no activations.
_C.MVIT.REV.ENABLE = False
# How the two streams end in one: add, max, min, avg, concat, concat_linear_<ratio>, ln+concat_linear_<ratio>.
_C.MVIT.REV.RESPATH_FUSE = "concat"
# Blocks between two resolutions, which are not reversible.
_C.MVIT.REV.BUFFER_LAYERS = []
# Pooling of the residual in those blocks: conv or max.
_C.MVIT.REV.RES_PATH = "conv"
# How the two streams meet before those blocks; as RESPATH_FUSE.
_C.MVIT.REV.PRE_Q_FUSION = "avg"

# ------------------------------ MASK ------------------------------
_C.MASK = CfgNode()
# Pre-train by predicting hidden cells.
_C.MASK.ENABLE = False
# The encoder sees only visible tokens (MAE); otherwise hidden ones are replaced (MaskFeat).
_C.MASK.MAE_ON = False
# Draw the mask per token in the model, instead of taking that of the sample.
_C.MASK.MAE_RND_MASK = False
# Draw it for each time step by itself.
_C.MASK.PER_FRAME_MASKING = False
# Predict one frame of each temporal patch.
_C.MASK.TIME_STRIDE_LOSS = True
# Predict pixels normalised within their patch.
_C.MASK.NORM_PRED_PIXEL = True
# Initial output weights of a block shrink with its depth.
_C.MASK.SCALE_INIT_BY_DEPTH = False
# Width of the decoder.
_C.MASK.DECODER_EMBED_DIM = 512
# Separate position tables of space and time in the decoder.
_C.MASK.DECODER_SEP_POS_EMBED = False
# Pooling kernel of keys and values in the decoder.
_C.MASK.DEC_KV_KERNEL = []
# Pooling stride of keys and values in the decoder.
_C.MASK.DEC_KV_STRIDE = []
# Blocks whose output is used to predict; there are none after the last of them.
_C.MASK.PRETRAIN_DEPTH = [15]
# Prediction head: separate (linear) or separate_xformer (with decoder blocks).
_C.MASK.HEAD_TYPE = "separate"
# Number of decoder blocks.
_C.MASK.DECODER_DEPTH = 0
# Predict histograms of gradients rather than pixels.
_C.MASK.PRED_HOG = False

# ------------------------------ SLOWFAST ------------------------------
_C.SLOWFAST = CfgNode()
# Channels of the slow pathway over those of the fast one.
_C.SLOWFAST.BETA_INV = 8
# Frames of the fast pathway over those of the slow one.
_C.SLOWFAST.ALPHA = 8
# Output channels of a lateral connection over the fast channels it reads.
_C.SLOWFAST.FUSION_CONV_CHANNEL_RATIO = 2
# Temporal kernel of the lateral connections.
_C.SLOWFAST.FUSION_KERNEL_SZ = 5

# ------------------------------ DATA ------------------------------
_C.DATA = CfgNode()
# Folder of the annotation lists; for ImageNet, of the images.
_C.DATA.PATH_TO_DATA_DIR = ""
# Separator of the columns in a video list.
_C.DATA.PATH_LABEL_SEPARATOR = " "
# Folder before each path of a list, unless it is absolute.
_C.DATA.PATH_PREFIX = ""
# Frames of a clip (of the fast pathway).
_C.DATA.NUM_FRAMES = 8
# Frames between two frames of a clip, at TARGET_FPS.
_C.DATA.SAMPLING_RATE = 8
# Eigenvalues of the colours for lighting jitter.
_C.DATA.TRAIN_PCA_EIGVAL = [0.225, 0.224, 0.229]
# Eigenvectors of the colours for lighting jitter.
_C.DATA.TRAIN_PCA_EIGVEC = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.814], [-0.5836, -0.6948, 0.4203]]
# Folder with {split}.json lists of ImageNet, instead of searching for the images.
_C.DATA.PATH_TO_PRELOAD_IMDB = ""
# Mean of each channel, with pixels from 0 to 1.
_C.DATA.MEAN = [0.45, 0.45, 0.45]
# Channels of each pathway's input.
_C.DATA.INPUT_CHANNEL_NUM = [3, 3]
# Standard deviation of each channel, with pixels from 0 to 1.
_C.DATA.STD = [0.225, 0.225, 0.225]
# [min, max] of the shorter side in training, in pixels; one-crop tests use the first.
_C.DATA.TRAIN_JITTER_SCALES = [256, 320]
# [min, max] area of a resized crop over the frame; empty uses TRAIN_JITTER_SCALES. Set with the next.
_C.DATA.TRAIN_JITTER_SCALES_RELATIVE = []
# [min, max] width over height of a resized crop.
_C.DATA.TRAIN_JITTER_ASPECT_RELATIVE = []
# Test clips reach from the first frame to the last, and a single one is in the middle.
_C.DATA.USE_OFFSET_SAMPLING = False
# The resized crop moves from one box to another during the clip.
_C.DATA.TRAIN_JITTER_MOTION_SHIFT = False
# Side of a training clip, in pixels.
_C.DATA.TRAIN_CROP_SIZE = 224
# Side of a test clip, in pixels.
_C.DATA.TEST_CROP_SIZE = 256
# Frame rate that SAMPLING_RATE counts in.
_C.DATA.TARGET_FPS = 30
# Add up to this many frames per second to TARGET_FPS, per training clip.
_C.DATA.TRAIN_JITTER_FPS = 0.0
# Rule for the span of a clip: torchvision (NUM_FRAMES strides) or pyav (one less).
_C.DATA.DECODING_BACKEND = "torchvision"
# Accepted, has no effect.
_C.DATA.DECODING_SHORT_SIZE = 256
# Draw the inverse of the shorter side uniformly.
_C.DATA.INV_UNIFORM_SAMPLE = False
# Mirror half of the training clips.
_C.DATA.RANDOM_FLIP = True
# Several labels per video: metric is mAP.
_C.DATA.MULTI_LABEL = False
# Scores of the views of a video: sum or max.
_C.DATA.ENSEMBLE_METHOD = "sum"
# Swap the order of the channels, RGB or BGR.
_C.DATA.REVERSE_INPUT_CHANNEL = False
# Clips of a video in a training sample.
_C.DATA.TRAIN_CROP_NUM_TEMPORAL = 1
# Crops of each of those clips.
_C.DATA.TRAIN_CROP_NUM_SPATIAL = 1
# Probability of a grey clip in self-supervised colour jitter.
_C.DATA.COLOR_RND_GRAYSCALE = 0.0
# Rows of train.csv in one epoch; 0 is all.
_C.DATA.LOADER_CHUNK_SIZE = 0
# Rows of train.csv altogether, where it is read in chunks.
_C.DATA.LOADER_CHUNK_OVERALL_SIZE = 0
# Rows of train.csv before the chunk of this epoch.
_C.DATA.SKIP_ROWS = 0
# Probability of grey frame differences as training input.
_C.DATA.TIME_DIFF_PROB = 0.0
# Self-supervised colour jitter, one draw for all frames of a clip.
_C.DATA.SSL_COLOR_JITTER = False
# Its strengths in brightness, contrast and saturation.
_C.DATA.SSL_COLOR_BRI_CON_SAT = [0.4, 0.4, 0.4]
# Its strength in hue.
_C.DATA.SSL_COLOR_HUE = 0.1
# Its MoCo v2 recipe: jitter with probability 0.8, then blur with 0.5.
_C.DATA.SSL_MOCOV2_AUG = False
# Smallest sigma of its blur in pixels: of the plain recipe, of MoCo v2.
_C.DATA.SSL_BLUR_SIGMA_MIN = [0.0, 0.1]
# Largest sigma of its blur, likewise; 0 is no blur.
_C.DATA.SSL_BLUR_SIGMA_MAX = [0.0, 2.0]
# Accepted, has no effect.
_C.DATA.IN22K_TRAINVAL = False
# If not empty, evaluation in training looks at the first 1000 outputs only: ImageNet-22k trained, ImageNet-1k
# validated. The first 1000 labels must be those of ImageNet-1k (lists, or a class_names.json). Tests look at all.
_C.DATA.IN22k_VAL_IN1K = ""
# ImageNet evaluation: side of the crop over the shorter side of the image; 0 resizes to the crop.
_C.DATA.IN_VAL_CROP_RATIO = 0.875
# Give the first sample again and again, to measure all but loading.
_C.DATA.DUMMY_LOAD = False

# ------------------------------ SOLVER ------------------------------
_C.SOLVER = CfgNode()
# Learning rate after warm-up.
_C.SOLVER.BASE_LR = 0.1
# Schedule: cosine or steps_with_relative_lrs.
_C.SOLVER.LR_POLICY = "cosine"
# Learning rate at the end of a cosine.
_C.SOLVER.COSINE_END_LR = 0.0
# Factor per step in the schedule of a multigrid long cycle.
_C.SOLVER.GAMMA = 0.1
# Accepted, has no effect.
_C.SOLVER.STEP_SIZE = 1
# Epochs at which the entries of LRS begin; the first is 0.
_C.SOLVER.STEPS = []
# Learning rate from each step on, over BASE_LR.
_C.SOLVER.LRS = []
# Epochs.
_C.SOLVER.MAX_EPOCH = 300
# Momentum of SGD.
_C.SOLVER.MOMENTUM = 0.9
# Dampening of that momentum.
_C.SOLVER.DAMPENING = 0.0
# Nesterov's form of it.
_C.SOLVER.NESTEROV = True
# Weight decay.
_C.SOLVER.WEIGHT_DECAY = 0.0001
# Accepted, has no effect.
_C.SOLVER.WARMUP_FACTOR = 0.1
# Epochs of linear warm-up.
_C.SOLVER.WARMUP_EPOCHS = 0.0
# Learning rate at the start of warm-up.
_C.SOLVER.WARMUP_START_LR = 0.01
# sgd, adam, adamw or mt_adamw.
_C.SOLVER.OPTIMIZING_METHOD = "sgd"
# Multiply BASE_LR, WARMUP_START_LR and COSINE_END_LR by NUM_SHARDS on loading, which sets this to False.
_C.SOLVER.BASE_LR_SCALE_NUM_SHARDS = False
# The cosine begins after warm-up rather than beneath it.
_C.SOLVER.COSINE_AFTER_WARMUP = False
# No weight decay on biases and other vectors.
_C.SOLVER.ZERO_WD_1D_PARAM = False
# Clip each element of the gradient to this size.
_C.SOLVER.CLIP_GRAD_VAL = None
# Clip the norm of the whole gradient to this size.
_C.SOLVER.CLIP_GRAD_L2NORM = None
# Scale the step of each weight by its norm (LARS).
_C.SOLVER.LARS_ON = False
# Learning rate of a transformer block over that of the next.
_C.SOLVER.LAYER_DECAY = 1.0
# Betas of Adam.
_C.SOLVER.BETAS = (0.9, 0.999)

# ------------------------------ BENCHMARK ------------------------------
_C.BENCHMARK = CfgNode()
# Epochs of the loader benchmark.
_C.BENCHMARK.NUM_EPOCHS = 5
# Iterations between two of its log lines.
_C.BENCHMARK.LOG_PERIOD = 100
# A new order of the data in each of its epochs.
_C.BENCHMARK.SHUFFLE = True

# ------------------------------ DATA_LOADER ------------------------------
_C.DATA_LOADER = CfgNode()
# Loader workers per process.
_C.DATA_LOADER.NUM_WORKERS = 8
# Load into page-locked memory, for faster copies to a GPU.
_C.DATA_LOADER.PIN_MEMORY = True
# Let the decoder use several threads for a video.
_C.DATA_LOADER.ENABLE_MULTI_THREAD_DECODE = False

# ------------------------------ DETECTION ------------------------------
_C.DETECTION = CfgNode()
# Score boxes of people rather than clips.
_C.DETECTION.ENABLE = False
# Shift boxes by half a pixel in RoIAlign, which is exact.
_C.DETECTION.ALIGNED = True
# Pixels per feature, for RoIAlign.
_C.DETECTION.SPATIAL_SCALE_FACTOR = 16
# Side of the RoIAlign grid.
_C.DETECTION.ROI_XFORM_RESOLUTION = 7

# ------------------------------ AVA ------------------------------
_C.AVA = CfgNode()
# Folder of the frames.
_C.AVA.FRAME_DIR = ""
# Folder of the frame lists.
_C.AVA.FRAME_LIST_DIR = ""
# Folder of boxes, labels and their names.
_C.AVA.ANNOTATION_DIR = ""
# Frame lists of training.
_C.AVA.TRAIN_LISTS = ["train.csv"]
# Frame lists of validation and testing.
_C.AVA.TEST_LISTS = ["val.csv"]
# Labelled boxes of training.
_C.AVA.TRAIN_GT_BOX_LISTS = ["ava_train_v2.2.csv"]
# Detected boxes to train on as well.
_C.AVA.TRAIN_PREDICT_BOX_LISTS = []
# Detected boxes of validation and testing.
_C.AVA.TEST_PREDICT_BOX_LISTS = ["ava_val_predicted_boxes.csv"]
# Least score of a detected box.
_C.AVA.DETECTION_SCORE_THRESH = 0.9
# The network takes BGR frames.
_C.AVA.BGR = False
# Colour and lighting jitter in training.
_C.AVA.TRAIN_USE_COLOR_AUGMENTATION = False
# Of those, lighting only.
_C.AVA.TRAIN_PCA_JITTER_ONLY = True
# Test mirrored clips.
_C.AVA.TEST_FORCE_FLIP = False
# Evaluate on every labelled second while training, not on every fourth.
_C.AVA.FULL_TEST_ON_VAL = False
# Class names (pbtxt).
_C.AVA.LABEL_MAP_FILE = "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
# Seconds left out of the evaluation.
_C.AVA.EXCLUSION_FILE = "ava_val_excluded_timestamps_v2.2.csv"
# Labelled boxes of the evaluation.
_C.AVA.GROUNDTRUTH_FILE = "ava_val_v2.2.csv"
# Rule of resizing: cv2 (whole 8-bit values) or pytorch (floats).
_C.AVA.IMG_PROC_BACKEND = "cv2"

# ------------------------------ MULTIGRID ------------------------------
_C.MULTIGRID = CfgNode()
# Epochs, as a multiple of SOLVER.MAX_EPOCH.
_C.MULTIGRID.EPOCH_FACTOR = 1.5
# The crop size changes with every batch.
_C.MULTIGRID.SHORT_CYCLE = False
# Crop sizes of the first two batches of a short cycle, over the full one; the third has it all.
_C.MULTIGRID.SHORT_CYCLE_FACTORS = [0.5, 0.7071067811865476]
# Clip length and crop size change with phases of epochs.
_C.MULTIGRID.LONG_CYCLE = False
# [frames, crop size] of each phase, over the full ones.
_C.MULTIGRID.LONG_CYCLE_FACTORS = [[0.25, 0.7071067811865476], [0.5, 0.7071067811865476], [0.5, 1], [1, 1]]
# Clips that share batch-norm statistics, whatever the batch size.
_C.MULTIGRID.BN_BASE_SIZE = 8
# Evaluations in each phase.
_C.MULTIGRID.EVAL_FREQ = 3
# Largest stride of a phase; set for each phase.
_C.MULTIGRID.LONG_CYCLE_SAMPLING_RATE = 0
# Batch size of the full shape; set for each phase.
_C.MULTIGRID.DEFAULT_B = 0
# Frames of the full shape; set for each phase.
_C.MULTIGRID.DEFAULT_T = 0
# Crop size of the full shape; set for each phase.
_C.MULTIGRID.DEFAULT_S = 0

# ------------------------------ TENSORBOARD ------------------------------
_C.TENSORBOARD = CfgNode()
# Write TensorBoard logs.
_C.TENSORBOARD.ENABLE = False
# Pickle of [scores, labels] to plot without testing again.
_C.TENSORBOARD.PREDICTIONS_PATH = ""
# Folder in OUTPUT_DIR; empty is runs-<data set>.
_C.TENSORBOARD.LOG_DIR = ""
# Class names: json {name: id}.
_C.TENSORBOARD.CLASS_NAMES_PATH = ""
# Groups of classes: json {group: [names]}.
_C.TENSORBOARD.CATEGORIES_PATH = ""

# ------------------------------ TENSORBOARD.CONFUSION_MATRIX ------------------------------
_C.TENSORBOARD.CONFUSION_MATRIX = CfgNode()
# Plot the confusion matrix.
_C.TENSORBOARD.CONFUSION_MATRIX.ENABLE = False
# Its size in inches.
_C.TENSORBOARD.CONFUSION_MATRIX.FIGSIZE = [8, 8]
# Text file with the class names of a second, smaller one.
_C.TENSORBOARD.CONFUSION_MATRIX.SUBSET_PATH = ""

# ------------------------------ TENSORBOARD.HISTOGRAM ------------------------------
_C.TENSORBOARD.HISTOGRAM = CfgNode()
# Plot what each class is taken for.
_C.TENSORBOARD.HISTOGRAM.ENABLE = False
# Text file with the class names to plot; empty is all.
_C.TENSORBOARD.HISTOGRAM.SUBSET_PATH = ""
# Bars of each plot.
_C.TENSORBOARD.HISTOGRAM.TOPK = 10
# Its size in inches.
_C.TENSORBOARD.HISTOGRAM.FIGSIZE = [8, 8]

# ------------------------------ TENSORBOARD.MODEL_VIS ------------------------------
_C.TENSORBOARD.MODEL_VIS = CfgNode()
# Run the visualisation job.
_C.TENSORBOARD.MODEL_VIS.ENABLE = False
# Show the weights of LAYER_LIST.
_C.TENSORBOARD.MODEL_VIS.MODEL_WEIGHTS = False
# Show its activations.
_C.TENSORBOARD.MODEL_VIS.ACTIVATIONS = False
# Show the clips.
_C.TENSORBOARD.MODEL_VIS.INPUT_VIDEO = False
# Layers as "path/to/layer", or with indices after it: "path/to/layer 0,1;2".
_C.TENSORBOARD.MODEL_VIS.LAYER_LIST = []
# How many clips are shown, spread evenly over the list of the test; 0 is all.
_C.TENSORBOARD.MODEL_VIS.MAX_CLIPS = 16
# Predictions written on each clip.
_C.TENSORBOARD.MODEL_VIS.TOPK_PREDS = 1
# Matplotlib colours of the labels.
_C.TENSORBOARD.MODEL_VIS.COLORMAP = "Pastel2"

# ------------------------------ TENSORBOARD.MODEL_VIS.GRAD_CAM ------------------------------
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM = CfgNode()
# Overlay what the prediction rests on.
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM.ENABLE = True
# The layer to look at, one per pathway.
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM.LAYER_LIST = []
# Explain the true class rather than the predicted one.
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM.USE_TRUE_LABEL = False
# Matplotlib colours of the overlay.
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM.COLORMAP = "viridis"

# ------------------------------ TENSORBOARD.WRONG_PRED_VIS ------------------------------
_C.TENSORBOARD.WRONG_PRED_VIS = CfgNode()
# Show the clips that are classified wrongly.
_C.TENSORBOARD.WRONG_PRED_VIS.ENABLE = False
# How many of them, of clips taken from all over the list of the test; 0 is all.
_C.TENSORBOARD.WRONG_PRED_VIS.MAX_CLIPS = 32
# Their heading.
_C.TENSORBOARD.WRONG_PRED_VIS.TAG = "Incorrectly classified videos."
# Text file with the class names to show; empty is all.
_C.TENSORBOARD.WRONG_PRED_VIS.SUBSET_PATH = ""

# ------------------------------ DEMO ------------------------------
_C.DEMO = CfgNode()
# Run the demo.
_C.DEMO.ENABLE = False
# Class names: json {name: id}.
_C.DEMO.LABEL_FILE_PATH = ""
# Index of a camera; -1 reads INPUT_VIDEO.
_C.DEMO.WEBCAM = -1
# A video, or a folder of frames.
_C.DEMO.INPUT_VIDEO = ""
# Width asked of a camera, in pixels; 0 leaves it.
_C.DEMO.DISPLAY_WIDTH = 0
# Height asked of a camera, in pixels; 0 leaves it.
_C.DEMO.DISPLAY_HEIGHT = 0
# Detector of people, as a configuration of detectron2.
_C.DEMO.DETECTRON2_CFG = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
# Its weights.
_C.DEMO.DETECTRON2_WEIGHTS = "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl"
# Least score of a person.
_C.DEMO.DETECTRON2_THRESH = 0.9
# Frames that two clips in succession share, at most half a clip.
_C.DEMO.BUFFER_SIZE = 0
# Video to write; empty shows a window.
_C.DEMO.OUTPUT_FILE = ""
# Its frame rate; -1 is that of the input.
_C.DEMO.OUTPUT_FPS = -1
# Order of the channels in the input: BGR or RGB.
_C.DEMO.INPUT_FORMAT = "BGR"
# Frames drawn on before and after the key frame.
_C.DEMO.CLIP_VIS_SIZE = 10
# Processes that draw.
_C.DEMO.NUM_VIS_INSTANCES = 2
# Boxes instead of a detector: csv as in AVA.
_C.DEMO.PREDS_BOXES = ""
# Read and write in threads.
_C.DEMO.THREAD_ENABLE = False
# With threads: clips passed over between two predictions; -1 predicts only the newest.
_C.DEMO.NUM_CLIPS_SKIP = 0
# True boxes to draw as well: csv as in AVA.
_C.DEMO.GT_BOXES = ""
# Second of the first frame, in those csv files.
_C.DEMO.STARTING_SECOND = 900
# Frame rate of a folder of frames.
_C.DEMO.FPS = 30
# Labels drawn: thres (above a score) or top-k (TENSORBOARD.MODEL_VIS.TOPK_PREDS of them).
_C.DEMO.VIS_MODE = "thres"
# Least score of a common class.
_C.DEMO.COMMON_CLASS_THRES = 0.7
# Least score of any other class.
_C.DEMO.UNCOMMON_CLASS_THRES = 0.3
# The common classes.
_C.DEMO.COMMON_CLASS_NAMES = [
    "watch (a person)",
    "talk to (e.g., self, a person, a group)",
    "listen to (a person)",
    "touch (an object)",
    "carry/hold (an object)",
    "walk",
    "sit",
    "lie/sleep",
    "bend/bow (at the waist)",
]
# How often each frame around a key frame is repeated.
_C.DEMO.SLOWMO = 1

# ------------------------------ keys of ours ------------------------------
# Validation during training looks at the centre view; True brings back the original's random clip, scale, crop and flip.
_C.DATA.VAL_RANDOM_VIEW = False
# A test video that cannot be decoded stops the job; True leaves it out of the metric and reports it.
_C.TEST.SKIP_BAD_VIDEOS = False
# Write report.html (curves, confusion matrix, example videos) into OUTPUT_DIR after a test.
_C.TEST.REPORT = True
# How the conv nets compute their convolutions: "auto" (fastest equivalent form by shape and device) or "native" (plain conv3d).
_C.MODEL.CONV_BACKEND = "auto"

# Frames per second of the frame lists in AVA.FRAME_LIST_DIR; videos are read at this rate. 0: at the rate of each video.
_C.AVA.FRAME_RATE = 30.0
# The second at which frame lists and videos begin, as the box lists count seconds.
_C.AVA.FIRST_SECOND = 900.0

# Steps between two checkpoints within an epoch; 0: none.
_C.TRAIN.CHECKPOINT_PERIOD_STEPS = 0
# Minutes between two checkpoints, also within an epoch; 0: none.
_C.TRAIN.CHECKPOINT_PERIOD_MINUTES = 0.0
# How many of the newest checkpoints of whole epochs are kept; 0 keeps all.
_C.TRAIN.CHECKPOINT_KEEP = 0
# How many of the best ones (by the evaluation that follows them) are kept besides.
_C.TRAIN.CHECKPOINT_KEEP_BEST = 0
# What is best: a name in the val_epoch record, say top1_err; empty takes map or top1_err, whichever is there.
_C.TRAIN.CHECKPOINT_BEST_METRIC = ""
# Of several processes, one without progress for so many minutes ends the job, which says which one it was; 0: never.
_C.TRAIN.HANG_MINUTES = 30.0

# The batch of a process is computed in so many parts, whose gradients add up to those of the whole: less memory.
_C.TRAIN.ACCUMULATION_STEPS = 1
# Decay of a moving average of the weights, which is evaluated, tested, and saved beside them, say 0.999; 0: none.
_C.TRAIN.EMA_DECAY = 0.0
# What TRAIN.MIXED_PRECISION computes in: "bf16", "fp16" (with a gradient scaler), or "auto" (bf16 where the device has it).
_C.TRAIN.MIXED_PRECISION_TYPE = "auto"
# Parts of the network that do not learn: names or patterns of parameters, say ["s1", "blocks.[0-3]"].
_C.MODEL.FREEZE = []
# Compile the network with torch.compile, once per clip shape.
_C.MODEL.COMPILE = False
# Cut weights, gradients and optimiser states up over all processes (FSDP2), for networks that do not fit one device.
_C.MODEL.FSDP = False
# Gradients travel between processes as bf16 (MODEL.FP16_ALLREDUCE: as fp16).
_C.MODEL.BF16_ALLREDUCE = False

# What decodes videos: "pyav", or "torchcodec" where it is installed; the frames are the same.
_C.DATA.VIDEO_DECODER = "pyav"
# Videos that are marked as turned (telephones) are given upright; False gives them as stored, as the original does.
_C.DATA.AUTOROTATE = True
# Seconds that one video may take a loader worker: longer counts as hung and the video as bad; 0 waits forever.
_C.DATA_LOADER.VIDEO_TIMEOUT = 300.0

_C.WANDB = CfgNode()
# Send numbers and pictures to Weights & Biases (python -m pip install wandb).
_C.WANDB.ENABLE = False
# Project that the runs belong to.
_C.WANDB.PROJECT = "slowfast"
# Name of the run; empty: that of the output folder.
_C.WANDB.NAME = ""
# Write to the output folder only, to be sent later with `wandb sync`.
_C.WANDB.OFFLINE = False


# Keys that are None until set, and what they hold then.
NONE_TYPES = {
    "AUG.MAX_MASK_PATCHES_PER_BLOCK": int,
    "MVIT.POOL_KV_STRIDE_ADAPTIVE": list,
    "MVIT.POOL_KVQ_KERNEL": list,
    "SOLVER.CLIP_GRAD_VAL": float,
    "SOLVER.CLIP_GRAD_L2NORM": float,
}


class ConfigError(ValueError):
    """A key or value in a file or an option that cannot be used; the message names it."""


def get_cfg() -> CfgNode:
    """A fresh copy of the defaults, ready to be merged into."""
    return _C.clone()


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Full dotted key -> value, for all leaves of a nested dictionary."""
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            leaves |= flatten(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


def register_keys(tree: dict) -> None:
    """Add keys of your own with their defaults, so that files and options may set them.

    Call it before ``load_cfg``, as a rule beside the model that reads the keys::

        register_keys({"MYNET": {"WIDTH": 64, "GATES": ["a", "b"]}})

    Registering a key again with the same default does nothing; a key that exists otherwise is refused.
    """
    known = flatten(_C)
    new = {key: value for key, value in flatten(tree).items() if key not in known or known[key] != value}
    for key in new:
        clash = next((k for k in known if k == key or k.startswith(f"{key}.") or key.startswith(f"{k}.")), None)
        if clash:
            raise ConfigError(f"register_keys: {key} collides with the key {clash} that exists already")
    for key, value in new.items():
        *sections, leaf = key.split(".")
        node = _C
        for section in sections:
            node = node.setdefault(section, CfgNode())
        setattr(node, leaf, value)
