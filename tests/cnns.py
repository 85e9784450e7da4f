"""Names of CNNs of timm and torchvision, for `load_model`: every family whose graph looks different.

Weights are random: apply `nets.randomise_batchnorm_`, then `nets.calibrate_batchnorm_`, to compare outputs.
Building and capturing takes 6 s for FAST and 90 s for SLOW on an idle core. Left out: GoogLeNet and Inception
of torchvision (auxiliary outputs).
"""

SIDE = 64  # of the input image, where SIDES has no other

FAST = (
    "torchvision:squeezenet1_1",  # no BatchNorm, no linear layer, concat
    "torchvision:resnet18",
    "timm:test_efficientnet",
    "timm:test_byobnet",
    "timm:resnetv2_18",  # pre-activation, 1x1 convolution as classifier
    "timm:resnetblur18",  # convolution with a fixed buffer, after reflection padding
    "timm:seresnet18",
    "timm:mobilenetv1_100",  # ReLU6
    "timm:mobilenetv4_conv_small",
    "timm:regnetx_002",  # grouped
)

SLOW = (
    "timm:cspresnet50",  # split, leaky ReLU
    "timm:convnext_atto",  # LayerNorm between permutes
    "timm:darknet53",
    "timm:densenet121",  # BatchNorm after concat, one tensor into many of them
    "timm:dla34",
    "timm:dpn68",  # concat and split on the residual path
    "timm:ecaresnet50t",  # conv1d as gate
    "timm:efficientnet_b0",
    "timm:efficientnet_lite0",
    "timm:ese_vovnet19b_dw",  # depthwise then 1x1 with nothing in between
    "timm:fasternet_t0",  # convolves a quarter of the channels
    "timm:fbnetc_100",
    "timm:ghostnet_100",  # in place on a slice
    "timm:hardcorenas_a",
    "timm:hgnetv2_b0",  # per-tensor affine parameters, uneven padding
    "timm:hrnet_w18_small",  # nearest upsampling
    "timm:inception_v3",  # rectangular kernels
    "timm:lcnet_050",
    "timm:legacy_xception",
    "timm:mixnet_s",  # split into kernels of several sizes
    "timm:mnasnet_100",
    "timm:mobilenetv2_100",
    "timm:mobilenetv3_large_100",
    "timm:mobilenetv3_small_100",
    "timm:mobileone_s0",  # four convolutions side by side, a sum that starts at 0
    "timm:nf_regnet_b0",  # weights standardised by batch_norm(training=True), scalar multiplies
    "timm:regnety_002",
    "timm:repvgg_a0",  # BatchNorm on the identity branch
    "timm:res2net50_26w_4s",
    "timm:resnest14d",  # softmax over two branches
    "timm:resnet50",
    "timm:resnetv2_50",
    "timm:resnetv2_50x1_bit",  # standardised weights, GroupNorm
    "timm:resnext50_32x4d",
    "timm:rexnet_100",  # adds to some of the channels
    "timm:selecsls42",
    "timm:semnasnet_100",
    "timm:skresnet18",  # selective kernel: stack, softmax, sum
    "timm:spnasnet_100",
    "timm:starnet_s1",  # product of two branches
    "timm:tf_efficientnet_lite0",  # asymmetric padding
    "timm:tinynet_a",
    "timm:vgg11_bn",  # 133 million parameters
    "torchvision:densenet121",
    "torchvision:efficientnet_b0",
    "torchvision:mnasnet0_5",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x0_5",  # channel shuffle
)

SIDES = {"timm:inception_v3": 96}
