"""Every configuration key with its default: the compatibility contract with PySlowFast.

Names, types and defaults of the keys are PySlowFast's, so its YAML files load here unchanged.
Keys that only we have stand at the end, each with a default that reproduces the original.
"""

from typing import Any

from fvcore.common.config import CfgNode

_C = CfgNode()


# ------------------------------ the job ------------------------------
# prefix of checkpoint names; "ssl", "ssl_eval*" switch behaviour
_C.TASK = ""
# processes per machine (0 = CPU)
_C.NUM_GPUS = 1
# machines (always overwritten by --num_shards)
_C.NUM_SHARDS = 1
# machine index (always overwritten by --shard_id)
_C.SHARD_ID = 0
# output root
_C.OUTPUT_DIR = "."
# seed for numpy+torch (python random is not seeded)
_C.RNG_SEED = 1
# iterations between log lines and window of medians
_C.LOG_PERIOD = 10
# print model, FLOPs, activations, nvidia-smi
_C.LOG_MODEL_INFO = True
# torch.distributed backend
_C.DIST_BACKEND = "nccl"

# ------------------------------ CONTRASTIVE ------------------------------
_C.CONTRASTIVE = CfgNode()
# softmax temperature of every contrastive loss and of the kNN vote
_C.CONTRASTIVE.T = 0.07
# embedding width used for memories/queues/prototypes (must equal MODEL.NUM_CLASSES for MoCo/BYOL etc.)
_C.CONTRASTIVE.DIM = 128
# expected number of training videos = rows of memory bank / kNN bank (bank is re-allocated if the dataset size differs)
_C.CONTRASTIVE.LENGTH = 239975
# number of negatives in the MoCo queue / sampled negatives of the memory-bank mode
_C.CONTRASTIVE.QUEUE_LEN = 65536
# EMA coefficient of the key encoder (or update rate of the memory bank)
_C.CONTRASTIVE.MOMENTUM = 0.5
# raise the EMA coefficient to 1 with a cosine over MAX_EPOCH
_C.CONTRASTIVE.MOMENTUM_ANNEALING = False
# algorithm: mem, self, moco, byol, simclr, swav (mem and self are broken, see §7)
_C.CONTRASTIVE.TYPE = "mem"
# linear interpolation in time when reading/writing a 2-d memory bank
_C.CONTRASTIVE.INTERP_MEMORY = False
# "1d" = one slot per video, anything else = (video,time) bank
_C.CONTRASTIVE.MEM_TYPE = "1d"
# class count of the online kNN classifier
_C.CONTRASTIVE.NUM_CLASSES_DOWNSTREAM = 400
# 1 = plain linear head projection, >1 = MLPHead with that many linear layers (also read by supervised heads, which then fail, 1.1)
_C.CONTRASTIVE.NUM_MLP_LAYERS = 1
# hidden width of projection/predictor MLPs
_C.CONTRASTIVE.MLP_DIM = 2048
# batch-norm inside the MLPs
_C.CONTRASTIVE.BN_MLP = False
# make that BN synchronised over BN.NUM_SYNC_DEVICES
_C.CONTRASTIVE.BN_SYNC_MLP = False
# MoCo batch shuffling inside a machine rather than over the whole world
_C.CONTRASTIVE.LOCAL_SHUFFLE_BN = True
# enqueue keys of all clips instead of only the first
_C.CONTRASTIVE.MOCO_MULTI_VIEW_QUEUE = False
# minimum frame gap between temporally sampled clips (frames at native fps)
_C.CONTRASTIVE.DELTA_CLIPS_MIN = float("-inf")
# maximum frame gap between temporally sampled clips
_C.CONTRASTIVE.DELTA_CLIPS_MAX = float("inf")
# list of predictor MLP depths appended to the head (BYOL needs exactly one)
_C.CONTRASTIVE.PREDICTOR_DEPTHS = []
# back-propagate clip by clip inside the forward helper (saves memory)
_C.CONTRASTIVE.SEQUENTIAL = False
# EFFECTIVELY DEAD: only shapes a mask that the hard-coded code path never uses
_C.CONTRASTIVE.SIMCLR_DIST_ON = True
# length of the SwAV feature queue (0 = none); key is misspelt upstream and must be kept
_C.CONTRASTIVE.SWAV_QEUE_LEN = 0
# keep a kNN bank and evaluate with it during/after training
_C.CONTRASTIVE.KNN_ON = True

# ------------------------------ BN ------------------------------
_C.BN = CfgNode()
# recompute BN statistics before checkpoint/eval epochs
_C.BN.USE_PRECISE_STATS = False
# batches used for that recomputation
_C.BN.NUM_BATCHES_PRECISE = 200
# weight decay of parameters that belong to BN modules (not SubBN's; LAYER_DECAY 1 only)
_C.BN.WEIGHT_DECAY = 0.0
# batchnorm, sub_batchnorm, sync_batchnorm, sync_batchnorm_apex
_C.BN.NORM_TYPE = "batchnorm"
# number of sub-batches for sub_batchnorm
_C.BN.NUM_SPLITS = 1
# group size (GPUs of one machine) for sync_batchnorm / apex
_C.BN.NUM_SYNC_DEVICES = 1
# sync_batchnorm over the whole world; requires NUM_SYNC_DEVICES None
_C.BN.GLOBAL_SYNC = False

# ------------------------------ TRAIN ------------------------------
_C.TRAIN = CfgNode()
# run the training job
_C.TRAIN.ENABLE = True
# abort when the loss exceeds factor x mean of the 5 preceding iterations' losses (0 = off; needs LOG_PERIOD >= 7)
_C.TRAIN.KILL_LOSS_EXPLOSION_FACTOR = 0.0
# dataset name for train and val (str.capitalize() gives registry key)
_C.TRAIN.DATASET = "kinetics"
# total clips per step on one machine (divided by NUM_GPUS per process)
_C.TRAIN.BATCH_SIZE = 64
# epochs between evaluations
_C.TRAIN.EVAL_PERIOD = 10
# epochs between checkpoints
_C.TRAIN.CHECKPOINT_PERIOD = 10
# continue from newest checkpoint in OUTPUT_DIR/checkpoints
_C.TRAIN.AUTO_RESUME = True
# initial weights
_C.TRAIN.CHECKPOINT_FILE_PATH = ""
# pytorch or caffe2
_C.TRAIN.CHECKPOINT_TYPE = "pytorch"
# 2-d to 3-d inflation while loading (conv kernel repeated and divided by T)
_C.TRAIN.CHECKPOINT_INFLATE = False
# ignore epoch, optimiser and scaler state of the file
_C.TRAIN.CHECKPOINT_EPOCH_RESET = False
# substrings removed (first occurrence) from checkpoint parameter names
_C.TRAIN.CHECKPOINT_CLEAR_NAME_PATTERN = ()
# autocast + GradScaler
_C.TRAIN.MIXED_PRECISION = False
# image/video transformer surgery while loading (patch-embed, pooling kernels, rel_pos, pos_embed)
_C.TRAIN.CHECKPOINT_IN_INIT = False

# ------------------------------ AUG ------------------------------
_C.AUG = CfgNode()
# switch on the RandAugment/random-erasing pipeline (train) and the timm-style ImageNet pipeline
_C.AUG.ENABLE = False
# augmented copies per clip (effective batch multiplies); Kinetics, SSv2 (with AUG.ENABLE); ImageNet crashes
_C.AUG.NUM_SAMPLE = 1
# ImageNet pipeline only, and only if AA_TYPE is empty
_C.AUG.COLOR_JITTER = 0.4
# RandAugment spec string rand-mM-nN-mstdS-incI-wW; empty disables
_C.AUG.AA_TYPE = "rand-m9-mstd0.5-inc1"
# PIL resampling for RandAugment (bilinear, bicubic, random) / ImageNet train resize (also lanczos, hamming)
_C.AUG.INTERPOLATION = "bicubic"
# random-erasing probability
_C.AUG.RE_PROB = 0.25
# const, rand or pixel fill
_C.AUG.RE_MODE = "pixel"
# maximum erased rectangles (also mis-passed as num_splits, see §7)
_C.AUG.RE_COUNT = 1
# DEAD
_C.AUG.RE_SPLIT = False
# data set also returns a mask (MaskFeat; Kinetics in every split, ImageNet with AUG.ENABLE)
_C.AUG.GEN_MASK_LOADER = False
# 2-d block mask repeated over time (expects 2-element MASK_WINDOW_SIZE, repeats 8x hard-coded)
_C.AUG.MASK_TUBE = False
# mask whole time steps
_C.AUG.MASK_FRAMES = False
# mask grid (T,H,W)
_C.AUG.MASK_WINDOW_SIZE = [8, 7, 7]
# masked fraction of tokens (also MAE random masking ratio)
_C.AUG.MASK_RATIO = 0.0
# cap on block size, image masks only
_C.AUG.MAX_MASK_PATCHES_PER_BLOCK = None

# ------------------------------ VIS_MASK ------------------------------
_C.VIS_MASK = CfgNode()
# MAE reconstruction dump during test
_C.VIS_MASK.ENABLE = False

# ------------------------------ MIXUP ------------------------------
_C.MIXUP = CfgNode()
# mixup/cutmix in the train loop
_C.MIXUP.ENABLE = False
# Beta parameter of mixup
_C.MIXUP.ALPHA = 0.8
# Beta parameter of cutmix
_C.MIXUP.CUTMIX_ALPHA = 1.0
# probability to mix a batch (0 keeps only label smoothing)
_C.MIXUP.PROB = 1.0
# probability of cutmix when both are on
_C.MIXUP.SWITCH_PROB = 0.5
# label smoothing of the one-hot targets
_C.MIXUP.LABEL_SMOOTH_VALUE = 0.1

# ------------------------------ TEST ------------------------------
_C.TEST = CfgNode()
# run the test job
_C.TEST.ENABLE = True
# dataset of the test job
_C.TEST.DATASET = "kinetics"
# total clips per test step on a machine (AVA requires it to equal NUM_GPUS)
_C.TEST.BATCH_SIZE = 8
# weights to test
_C.TEST.CHECKPOINT_FILE_PATH = ""
# temporal clips per video; -1 loops over 1,3,5,7,10
_C.TEST.NUM_ENSEMBLE_VIEWS = 10
# spatial crops per clip (1 = centre for Kinetics, left/top for SSv2, Charades; 2 = left, centre; 3 = uniform)
_C.TEST.NUM_SPATIAL_CROPS = 3
# pytorch or caffe2
_C.TEST.CHECKPOINT_TYPE = "pytorch"
# pickle file name (under OUTPUT_DIR) for [preds, labels]
_C.TEST.SAVE_RESULTS_PATH = ""
# list of NUM_ENSEMBLE_VIEWS values tested one after another
_C.TEST.NUM_TEMPORAL_CLIPS = []

# ------------------------------ RESNET ------------------------------
_C.RESNET = CfgNode()
# bottleneck_transform, basic_transform, x3d_transform
_C.RESNET.TRANS_FUNC = "bottleneck_transform"
# grouped 3x3 conv (ResNeXt)
_C.RESNET.NUM_GROUPS = 1
# base width
_C.RESNET.WIDTH_PER_GROUP = 64
# in-place ReLU in residual blocks (ignored by SlowFast/X3D builders)
_C.RESNET.INPLACE_RELU = True
# put the stride on the first 1x1 conv (ignored by SlowFast builder)
_C.RESNET.STRIDE_1X1 = False
# gamma of last BN of each residual branch (and of non-local BN) starts at 0 (not SubBN; PTV models always do it)
_C.RESNET.ZERO_INIT_FINAL_BN = False
# last conv of each residual branch starts at 0 (not for x3d_transform)
_C.RESNET.ZERO_INIT_FINAL_CONV = False
# 18, 50 or 101 (X3D requires a valid value but ignores it)
_C.RESNET.DEPTH = 50
# per stage, per pathway: number of leading blocks that use the temporal kernel (ignored by X3D, PTVResNet)
_C.RESNET.NUM_BLOCK_TEMP_KERNEL = [[3], [4], [6], [3]]
# per stage, per pathway stride
_C.RESNET.SPATIAL_STRIDES = [[1], [2], [2], [2]]
# per stage, per pathway dilation of the 3x3
_C.RESNET.SPATIAL_DILATIONS = [[1], [1], [1], [1]]

# ------------------------------ X3D ------------------------------
_C.X3D = CfgNode()
# channel multiplier
_C.X3D.WIDTH_FACTOR = 1.0
# block-repeat multiplier (ceil)
_C.X3D.DEPTH_FACTOR = 1.0
# inner width / outer width
_C.X3D.BOTTLENECK_FACTOR = 1.0
# width of the penultimate linear (1x1x1 conv)
_C.X3D.DIM_C5 = 2048
# stem width before WIDTH_FACTOR
_C.X3D.DIM_C1 = 12
# double res2 width
_C.X3D.SCALE_RES2 = False
# BN after the penultimate linear
_C.X3D.BN_LIN5 = False
# depthwise middle conv
_C.X3D.CHANNELWISE_3x3x3 = True

# ------------------------------ NONLOCAL ------------------------------
_C.NONLOCAL = CfgNode()
# [stage][pathway] list of block indices followed by a non-local block
_C.NONLOCAL.LOCATION = [[[]], [[]], [[]], [[]]]
# [stage][pathway] number of temporal groups folded into the batch
_C.NONLOCAL.GROUP = [[1], [1], [1], [1]]
# softmax or dot_product
_C.NONLOCAL.INSTANTIATION = "dot_product"
# [stage][pathway] max-pool kernel=stride for phi and g
_C.NONLOCAL.POOL = [[[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]], [[1, 2, 2], [1, 2, 2]]]

# ------------------------------ MODEL ------------------------------
_C.MODEL = CfgNode()
# arch key: 2d,c2d,slow_c2d,i3d,slow_i3d,slow,slowfast,x3d (temporal kernels) or mvit/maskmvit
_C.MODEL.ARCH = "slowfast"
# registry key of the model class
_C.MODEL.MODEL_NAME = "SlowFast"
# outputs
_C.MODEL.NUM_CLASSES = 400
# cross_entropy,bce,bce_logit,soft_cross_entropy,contrastive_loss,mse,multi_mse
_C.MODEL.LOSS_FUNC = "cross_entropy"
# arch names packed as one pathway
_C.MODEL.SINGLE_PATHWAY_ARCH = ["2d", "c2d", "i3d", "slow", "x3d", "mvit", "maskmvit"]
# arch names packed as slow+fast
_C.MODEL.MULTI_PATHWAY_ARCH = ["slowfast"]
# dropout before the classifier
_C.MODEL.DROPOUT_RATE = 0.5
# stochastic depth of X3D stages; NO EFFECT upstream (bug, §7)
_C.MODEL.DROPCONNECT_RATE = 0.0
# std of the normal init of Linear layers in conv nets
_C.MODEL.FC_INIT_STD = 0.01
# softmax, sigmoid or none (none: not in X3D, RoI and PTV heads)
_C.MODEL.HEAD_ACT = "softmax"
# activation checkpointing through fairscale (ResNet s1,s2; MViT patch embed + all blocks)
_C.MODEL.ACT_CHECKPOINT = False
# stop gradient before the classifier (linear probe); ignored by X3D, PTV and MViT detection
_C.MODEL.DETACH_FINAL_FC = False
# put BatchNorm3d modules in eval mode during training
_C.MODEL.FROZEN_BN = False
# DDP fp16 gradient compression hook
_C.MODEL.FP16_ALLREDUCE = False

# ------------------------------ MVIT ------------------------------
_C.MVIT = CfgNode()
# pooling operator of attention: conv, conv_unshared, avg, max
_C.MVIT.MODE = "conv"
# pool tokens before the q/k/v projections
_C.MVIT.POOL_FIRST = False
# class token
_C.MVIT.CLS_EMBED_ON = True
# patch conv kernel
_C.MVIT.PATCH_KERNEL = [3, 7, 7]
# patch conv stride
_C.MVIT.PATCH_STRIDE = [2, 4, 4]
# patch conv padding
_C.MVIT.PATCH_PADDING = [2, 4, 4]
# Conv2d patch embed for images
_C.MVIT.PATCH_2D = False
# initial width
_C.MVIT.EMBED_DIM = 96
# initial heads
_C.MVIT.NUM_HEADS = 1
# MLP expansion
_C.MVIT.MLP_RATIO = 4.0
# bias in q/k/v
_C.MVIT.QKV_BIAS = True
# max stochastic depth, linear from 0 over depth
_C.MVIT.DROPPATH_RATE = 0.1
# EFFECTIVELY DEAD: read into a variable, never handed to the blocks
_C.MVIT.LAYER_SCALE_INIT_VALUE = 0.0
# number of blocks
_C.MVIT.DEPTH = 16
# only layernorm
_C.MVIT.NORM = "layernorm"
# [[block, factor],...] width multipliers
_C.MVIT.DIM_MUL = []
# [[block, factor],...] head multipliers
_C.MVIT.HEAD_MUL = []
# [[block, t,h,w],...]
_C.MVIT.POOL_KV_STRIDE = []
# initial kv stride, divided by each q stride met (overrides POOL_KV_STRIDE and writes it into cfg)
_C.MVIT.POOL_KV_STRIDE_ADAPTIVE = None
# [[block, t,h,w],...]
_C.MVIT.POOL_Q_STRIDE = []
# pool kernel for q,k,v; None = s+1 where s>1
_C.MVIT.POOL_KVQ_KERNEL = None
# exclude pos/cls/rel_pos params from weight decay
_C.MVIT.ZERO_DECAY_POS_CLS = True
# LayerNorm after patch+pos embedding
_C.MVIT.NORM_STEM = False
# separate spatial+temporal(+class) absolute embeddings
_C.MVIT.SEP_POS_EMBED = False
# dropout in attention output, MLP and after pos-embed
_C.MVIT.DROPOUT_RATE = 0.0
# absolute position embedding
_C.MVIT.USE_ABS_POS = True
# decomposed spatial relative position bias
_C.MVIT.REL_POS_SPATIAL = False
# temporal relative position bias
_C.MVIT.REL_POS_TEMPORAL = False
# zero instead of trunc-normal init
_C.MVIT.REL_POS_ZERO_INIT = False
# add pooled q to the attention output
_C.MVIT.RESIDUAL_POOLING = False
# change width in attention (v2) rather than in the MLP (v1)
_C.MVIT.DIM_MUL_IN_ATT = False
# three linears rather than one fused
_C.MVIT.SEPARATE_QKV = False
# multiplies initial classifier weight and bias
_C.MVIT.HEAD_INIT_SCALE = 1.0
# average patch tokens then norm, instead of cls token
_C.MVIT.USE_MEAN_POOLING = False
# frozen 3-d sin-cos embedding (needs USE_ABS_POS, no SEP_POS_EMBED; added twice by MViT, §7)
_C.MVIT.USE_FIXED_SINCOS_POS = False

# ------------------------------ MVIT.REV ------------------------------
_C.MVIT.REV = CfgNode()
# reversible backbone
_C.MVIT.REV.ENABLE = False
# how the two streams are merged at the end (add,max,min,avg,concat,[ln+]concat_linear_*)
_C.MVIT.REV.RESPATH_FUSE = "concat"
# indices of stage-transition (non reversible) blocks
_C.MVIT.REV.BUFFER_LAYERS = []
# conv or max pooling of the residual in transition blocks (max is broken)
_C.MVIT.REV.RES_PATH = "conv"
# stream merge before transition blocks
_C.MVIT.REV.PRE_Q_FUSION = "avg"

# ------------------------------ MASK ------------------------------
_C.MASK = CfgNode()
# masked pre-training path in the train loop
_C.MASK.ENABLE = False
# encoder sees only visible tokens
_C.MASK.MAE_ON = False
# random per-token mask made in the model instead of the loader mask
_C.MASK.MAE_RND_MASK = False
# random mask drawn per time step; BROKEN, forward always fails
_C.MASK.PER_FRAME_MASKING = False
# predict only one frame per temporal patch (MAE; MaskFeat pixel target always does)
_C.MASK.TIME_STRIDE_LOSS = True
# per-patch normalised pixel target
_C.MASK.NORM_PRED_PIXEL = True
# divide attn.proj and mlp.fc2 init by sqrt(2*layer)
_C.MASK.SCALE_INIT_BY_DEPTH = False
# MAE decoder width
_C.MASK.DECODER_EMBED_DIM = 512
# separate decoder position embeddings
_C.MASK.DECODER_SEP_POS_EMBED = False
# kv pool kernel in decoder blocks
_C.MASK.DEC_KV_KERNEL = []
# kv pool stride in decoder blocks
_C.MASK.DEC_KV_STRIDE = []
# block indices whose output feeds prediction heads; blocks after the last are deleted
_C.MASK.PRETRAIN_DEPTH = [15]
# separate or separate_xformer
_C.MASK.HEAD_TYPE = "separate"
# number of decoder blocks
_C.MASK.DECODER_DEPTH = 0
# HOG target instead of pixels
_C.MASK.PRED_HOG = False

# ------------------------------ SLOWFAST ------------------------------
_C.SLOWFAST = CfgNode()
# channel ratio slow/fast
_C.SLOWFAST.BETA_INV = 8
# frame ratio fast/slow
_C.SLOWFAST.ALPHA = 8
# lateral conv output channels = ratio x fast channels
_C.SLOWFAST.FUSION_CONV_CHANNEL_RATIO = 2
# temporal kernel of the lateral conv
_C.SLOWFAST.FUSION_KERNEL_SZ = 5

# ------------------------------ DATA ------------------------------
_C.DATA = CfgNode()
# folder with annotation lists / ImageNet root
_C.DATA.PATH_TO_DATA_DIR = ""
# separator inside Kinetics lists
_C.DATA.PATH_LABEL_SEPARATOR = " "
# joined in front of listed paths
_C.DATA.PATH_PREFIX = ""
# frames per clip (fast pathway count)
_C.DATA.NUM_FRAMES = 8
# stride between frames at TARGET_FPS
_C.DATA.SAMPLING_RATE = 8
# PCA lighting eigenvalues
_C.DATA.TRAIN_PCA_EIGVAL = [0.225, 0.224, 0.229]
# PCA lighting eigenvectors
_C.DATA.TRAIN_PCA_EIGVEC = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.814], [-0.5836, -0.6948, 0.4203]]
# folder with {split}.json image list for ImageNet
_C.DATA.PATH_TO_PRELOAD_IMDB = ""
# RGB mean on [0,1] scale
_C.DATA.MEAN = [0.45, 0.45, 0.45]
# input channels per pathway
_C.DATA.INPUT_CHANNEL_NUM = [3, 3]
# RGB std on [0,1] scale
_C.DATA.STD = [0.225, 0.225, 0.225]
# [min,max] short side for train (also test scale when 1 crop)
_C.DATA.TRAIN_JITTER_SCALES = [256, 320]
# area range for Inception crop (train)
_C.DATA.TRAIN_JITTER_SCALES_RELATIVE = []
# aspect range for Inception crop (train); set with SCALES_RELATIVE or not at all
_C.DATA.TRAIN_JITTER_ASPECT_RELATIVE = []
# end-to-end uniform test clips (1 view: centre) instead of left-aligned; Kinetics only
_C.DATA.USE_OFFSET_SAMPLING = False
# different Inception box for first/last frame, interpolated
_C.DATA.TRAIN_JITTER_MOTION_SHIFT = False
# train crop
_C.DATA.TRAIN_CROP_SIZE = 224
# test crop
_C.DATA.TEST_CROP_SIZE = 256
# nominal fps for SAMPLING_RATE
_C.DATA.TARGET_FPS = 30
# adds U(0,x) to TARGET_FPS in train
_C.DATA.TRAIN_JITTER_FPS = 0.0
# torchvision or pyav (different frames, see 2.2; both unusable today, §7)
_C.DATA.DECODING_BACKEND = "torchvision"
# DEAD (decoder short side is min_scale)
_C.DATA.DECODING_SHORT_SIZE = 256
# sample 1/scale uniformly
_C.DATA.INV_UNIFORM_SAMPLE = False
# horizontal flip p=0.5 (train and val)
_C.DATA.RANDOM_FLIP = True
# mAP instead of top-k
_C.DATA.MULTI_LABEL = False
# sum or max over views (multi-label needs max)
_C.DATA.ENSEMBLE_METHOD = "sum"
# RGB<->BGR swap of the clip
_C.DATA.REVERSE_INPUT_CHANNEL = False
# clips decoded per video (Kinetics train only; >1 elsewhere breaks the collate)
_C.DATA.TRAIN_CROP_NUM_TEMPORAL = 1
# spatial crops per clip (as above)
_C.DATA.TRAIN_CROP_NUM_SPATIAL = 1
# grayscale probability inside SSL jitter
_C.DATA.COLOR_RND_GRAYSCALE = 0.0
# rows of train.csv loaded per epoch (0 = all)
_C.DATA.LOADER_CHUNK_SIZE = 0
# total rows for chunk arithmetic
_C.DATA.LOADER_CHUNK_OVERALL_SIZE = 0
# rows skipped by the chunk loader (set by the train loop)
_C.DATA.SKIP_ROWS = 0
# probability of grey temporal-difference input (train)
_C.DATA.TIME_DIFF_PROB = 0.0
# SimCLR/MoCo clip-consistent colour jitter
_C.DATA.SSL_COLOR_JITTER = False
# its strengths
_C.DATA.SSL_COLOR_BRI_CON_SAT = [0.4, 0.4, 0.4]
# its hue strength
_C.DATA.SSL_COLOR_HUE = 0.1
# MoCo-v2 recipe (apply jitter p=.8, blur p=.5)
_C.DATA.SSL_MOCOV2_AUG = False
# EFFECTIVELY DEAD (blur range fixed at 0.1..2.0)
_C.DATA.SSL_BLUR_SIGMA_MIN = [0.0, 0.1]
# EFFECTIVELY DEAD
_C.DATA.SSL_BLUR_SIGMA_MAX = [0.0, 2.0]
# DEAD
_C.DATA.IN22K_TRAINVAL = False
# non-empty = evaluate first 1000 logits only (validation during training; the test job ignores it)
_C.DATA.IN22k_VAL_IN1K = ""
# ImageNet val resize ratio (0 = direct resize)
_C.DATA.IN_VAL_CROP_RATIO = 0.875
# return the first loaded sample forever, per worker (loader benchmark; Kinetics and ImageNet)
_C.DATA.DUMMY_LOAD = False

# ------------------------------ SOLVER ------------------------------
_C.SOLVER = CfgNode()
# peak learning rate
_C.SOLVER.BASE_LR = 0.1
# cosine or steps_with_relative_lrs
_C.SOLVER.LR_POLICY = "cosine"
# cosine floor
_C.SOLVER.COSINE_END_LR = 0.0
# only used by the multigrid long-cycle schedule
_C.SOLVER.GAMMA = 0.1
# DEAD
_C.SOLVER.STEP_SIZE = 1
# epoch starts for step policy (first must be 0)
_C.SOLVER.STEPS = []
# relative LR per step
_C.SOLVER.LRS = []
# epochs
_C.SOLVER.MAX_EPOCH = 300
# SGD momentum
_C.SOLVER.MOMENTUM = 0.9
# SGD dampening
_C.SOLVER.DAMPENING = 0.0
# SGD Nesterov
_C.SOLVER.NESTEROV = True
# default weight decay
_C.SOLVER.WEIGHT_DECAY = 0.0001
# DEAD
_C.SOLVER.WARMUP_FACTOR = 0.1
# linear warm-up length (float epochs)
_C.SOLVER.WARMUP_EPOCHS = 0.0
# LR at epoch 0 when warming up
_C.SOLVER.WARMUP_START_LR = 0.01
# sgd, adam, adamw, mt_adamw
_C.SOLVER.OPTIMIZING_METHOD = "sgd"
# multiply BASE_LR, WARMUP_START_LR, COSINE_END_LR by NUM_SHARDS
_C.SOLVER.BASE_LR_SCALE_NUM_SHARDS = False
# cosine clock starts after warm-up
_C.SOLVER.COSINE_AFTER_WARMUP = False
# no decay for 1-d params and biases
_C.SOLVER.ZERO_WD_1D_PARAM = False
# clip by value (crashes in upstream logging, §7)
_C.SOLVER.CLIP_GRAD_VAL = None
# clip by global L2 norm
_C.SOLVER.CLIP_GRAD_L2NORM = None
# wrap optimiser in LARS (trust 0.001, no clipping)
_C.SOLVER.LARS_ON = False
# layer-wise LR decay for transformers
_C.SOLVER.LAYER_DECAY = 1.0
# Adam betas
_C.SOLVER.BETAS = (0.9, 0.999)

# ------------------------------ BENCHMARK ------------------------------
_C.BENCHMARK = CfgNode()
# loader benchmark epochs
_C.BENCHMARK.NUM_EPOCHS = 5
# its log period
_C.BENCHMARK.LOG_PERIOD = 100
# reshuffle each benchmark epoch
_C.BENCHMARK.SHUFFLE = True

# ------------------------------ DATA_LOADER ------------------------------
_C.DATA_LOADER = CfgNode()
# workers per process
_C.DATA_LOADER.NUM_WORKERS = 8
# pinned memory
_C.DATA_LOADER.PIN_MEMORY = True
# pyav thread_type AUTO
_C.DATA_LOADER.ENABLE_MULTI_THREAD_DECODE = False

# ------------------------------ DETECTION ------------------------------
_C.DETECTION = CfgNode()
# RoI head + AVA loops
_C.DETECTION.ENABLE = False
# RoIAlign aligned flag
_C.DETECTION.ALIGNED = True
# feature stride of RoI features
_C.DETECTION.SPATIAL_SCALE_FACTOR = 16
# RoIAlign output side
_C.DETECTION.ROI_XFORM_RESOLUTION = 7

# ------------------------------ AVA ------------------------------
_C.AVA = CfgNode()
# frame root (hard-coded Meta path as default)
_C.AVA.FRAME_DIR = ""
# folder of frame lists (hard-coded Meta path)
_C.AVA.FRAME_LIST_DIR = ""
# folder of box/label files (hard-coded Meta path)
_C.AVA.ANNOTATION_DIR = ""
# frame list files for train
_C.AVA.TRAIN_LISTS = ["train.csv"]
# frame list files for val/test
_C.AVA.TEST_LISTS = ["val.csv"]
# ground-truth box files
_C.AVA.TRAIN_GT_BOX_LISTS = ["ava_train_v2.2.csv"]
# detector box files used in training
_C.AVA.TRAIN_PREDICT_BOX_LISTS = []
# detector box files for val/test
_C.AVA.TEST_PREDICT_BOX_LISTS = ["ava_val_predicted_boxes.csv"]
# minimum detector score
_C.AVA.DETECTION_SCORE_THRESH = 0.9
# feed BGR frames
_C.AVA.BGR = False
# colour jitter / PCA in train
_C.AVA.TRAIN_USE_COLOR_AUGMENTATION = False
# PCA only
_C.AVA.TRAIN_PCA_JITTER_ONLY = True
# mirror test clips
_C.AVA.TEST_FORCE_FLIP = False
# evaluate all val seconds, not only second%4==0
_C.AVA.FULL_TEST_ON_VAL = False
# pbtxt class list
_C.AVA.LABEL_MAP_FILE = "ava_action_list_v2.2_for_activitynet_2019.pbtxt"
# excluded timestamps
_C.AVA.EXCLUSION_FILE = "ava_val_excluded_timestamps_v2.2.csv"
# val ground truth csv
_C.AVA.GROUNDTRUTH_FILE = "ava_val_v2.2.csv"
# cv2 or pytorch
_C.AVA.IMG_PROC_BACKEND = "cv2"

# ------------------------------ MULTIGRID ------------------------------
_C.MULTIGRID = CfgNode()
# epoch multiplier
_C.MULTIGRID.EPOCH_FACTOR = 1.5
# per-iteration spatial cycle (broken upstream, §7)
_C.MULTIGRID.SHORT_CYCLE = False
# crop factors of the first two phases
_C.MULTIGRID.SHORT_CYCLE_FACTORS = [0.5, 0.7071067811865476]
# per-epoch (T,S) cycle
_C.MULTIGRID.LONG_CYCLE = False
# (T,S) factors
_C.MULTIGRID.LONG_CYCLE_FACTORS = [[0.25, 0.7071067811865476], [0.5, 0.7071067811865476], [0.5, 1], [1, 1]]
# clips per BN statistic
_C.MULTIGRID.BN_BASE_SIZE = 8
# evaluations/checkpoints per long-cycle phase
_C.MULTIGRID.EVAL_FREQ = 3
# runtime: upper bound of random frame stride
_C.MULTIGRID.LONG_CYCLE_SAMPLING_RATE = 0
# runtime copy of BATCH_SIZE
_C.MULTIGRID.DEFAULT_B = 0
# runtime copy of NUM_FRAMES
_C.MULTIGRID.DEFAULT_T = 0
# runtime copy of TRAIN_CROP_SIZE
_C.MULTIGRID.DEFAULT_S = 0

# ------------------------------ TENSORBOARD ------------------------------
_C.TENSORBOARD = CfgNode()
# write TensorBoard
_C.TENSORBOARD.ENABLE = False
# pickle [preds,labels] for class-level plots
_C.TENSORBOARD.PREDICTIONS_PATH = ""
# sub-folder of OUTPUT_DIR ("" = runs-{dataset})
_C.TENSORBOARD.LOG_DIR = ""
# json name->id (must be set for MODEL_VIS and WRONG_PRED_VIS)
_C.TENSORBOARD.CLASS_NAMES_PATH = ""
# json parent->[children]
_C.TENSORBOARD.CATEGORIES_PATH = ""

# ------------------------------ TENSORBOARD.CONFUSION_MATRIX ------------------------------
_C.TENSORBOARD.CONFUSION_MATRIX = CfgNode()
# confusion matrix
_C.TENSORBOARD.CONFUSION_MATRIX.ENABLE = False
# inches
_C.TENSORBOARD.CONFUSION_MATRIX.FIGSIZE = [8, 8]
# text file with class subset
_C.TENSORBOARD.CONFUSION_MATRIX.SUBSET_PATH = ""

# ------------------------------ TENSORBOARD.HISTOGRAM ------------------------------
_C.TENSORBOARD.HISTOGRAM = CfgNode()
# top-k prediction histograms
_C.TENSORBOARD.HISTOGRAM.ENABLE = False
# class subset file
_C.TENSORBOARD.HISTOGRAM.SUBSET_PATH = ""
# bars per histogram
_C.TENSORBOARD.HISTOGRAM.TOPK = 10
# inches
_C.TENSORBOARD.HISTOGRAM.FIGSIZE = [8, 8]

# ------------------------------ TENSORBOARD.MODEL_VIS ------------------------------
_C.TENSORBOARD.MODEL_VIS = CfgNode()
# weights/activations/inputs visualisation job
_C.TENSORBOARD.MODEL_VIS.ENABLE = False
# plot weights
_C.TENSORBOARD.MODEL_VIS.MODEL_WEIGHTS = False
# plot activations
_C.TENSORBOARD.MODEL_VIS.ACTIVATIONS = False
# log input clips
_C.TENSORBOARD.MODEL_VIS.INPUT_VIDEO = False
# "path/to/layer idx;idx" strings
_C.TENSORBOARD.MODEL_VIS.LAYER_LIST = []
# labels drawn per clip
_C.TENSORBOARD.MODEL_VIS.TOPK_PREDS = 1
# matplotlib colormap for labels
_C.TENSORBOARD.MODEL_VIS.COLORMAP = "Pastel2"

# ------------------------------ TENSORBOARD.MODEL_VIS.GRAD_CAM ------------------------------
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM = CfgNode()
# Grad-CAM overlay (default True)
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM.ENABLE = True
# one layer per pathway
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM.LAYER_LIST = []
# explain the true label
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM.USE_TRUE_LABEL = False
# heat-map colormap
_C.TENSORBOARD.MODEL_VIS.GRAD_CAM.COLORMAP = "viridis"

# ------------------------------ TENSORBOARD.WRONG_PRED_VIS ------------------------------
_C.TENSORBOARD.WRONG_PRED_VIS = CfgNode()
# log misclassified clips
_C.TENSORBOARD.WRONG_PRED_VIS.ENABLE = False
# tag prefix
_C.TENSORBOARD.WRONG_PRED_VIS.TAG = "Incorrectly classified videos."
# class subset
_C.TENSORBOARD.WRONG_PRED_VIS.SUBSET_PATH = ""

# ------------------------------ DEMO ------------------------------
_C.DEMO = CfgNode()
# run the demo
_C.DEMO.ENABLE = False
# json name->id (must be set)
_C.DEMO.LABEL_FILE_PATH = ""
# camera index, beats INPUT_VIDEO; -1 = use file
_C.DEMO.WEBCAM = -1
# video file or AVA frame folder
_C.DEMO.INPUT_VIDEO = ""
# capture width asked of the device and assumed for boxes/output (needs HEIGHT too)
_C.DEMO.DISPLAY_WIDTH = 0
# forced capture height
_C.DEMO.DISPLAY_HEIGHT = 0
# detector config name
_C.DEMO.DETECTRON2_CFG = "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"
# detector weights
_C.DEMO.DETECTRON2_WEIGHTS = "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl"
# detector score threshold
_C.DEMO.DETECTRON2_THRESH = 0.9
# frames shared by consecutive clips (<= half of NUM_FRAMES*SAMPLING_RATE)
_C.DEMO.BUFFER_SIZE = 0
# mp4 to write ("" = window)
_C.DEMO.OUTPUT_FILE = ""
# output fps (-1 = source; precomputed mode always 30)
_C.DEMO.OUTPUT_FPS = -1
# BGR or RGB
_C.DEMO.INPUT_FORMAT = "BGR"
# frames drawn on each side of the key frame
_C.DEMO.CLIP_VIS_SIZE = 10
# visualiser processes
_C.DEMO.NUM_VIS_INSTANCES = 2
# AVA csv with precomputed boxes (full path; with DETECTION.ENABLE selects precomputed mode)
_C.DEMO.PREDS_BOXES = ""
# threaded reader/writer
_C.DEMO.THREAD_ENABLE = False
# predict every n+1-th clip (-1 = newest); THREAD_ENABLE only
_C.DEMO.NUM_CLIPS_SKIP = 0
# AVA ground-truth csv
_C.DEMO.GT_BOXES = ""
# second of frame 0
_C.DEMO.STARTING_SECOND = 900
# fps for frame folders
_C.DEMO.FPS = 30
# thres or top-k (k = TENSORBOARD.MODEL_VIS.TOPK_PREDS)
_C.DEMO.VIS_MODE = "thres"
# threshold for common classes
_C.DEMO.COMMON_CLASS_THRES = 0.7
# threshold for the others
_C.DEMO.UNCOMMON_CLASS_THRES = 0.3
# list of common AVA classes
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
# slow-motion factor around key frames
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
