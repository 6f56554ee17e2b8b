"""Names of the methods in tables, and the paper's numbers for them."""

#: method -> how it is called in tables
NAMES = {
    "in_run_first_sgd": "In-Run 1st (the paper's formula)",
    "in_run_second_sgd": "In-Run 2nd (the paper's formula)",
    "in_run_first": "In-Run 1st, Adam's step",
    "in_run_path": "In-Run path, Adam's step",
    "knn_shapley": "KNN-Shapley",
    "influence_cg": "influence function, CG",
    "influence_lissa": "influence function, LiSSA",
    "influence_ekfac": "influence function, EK-FAC",
    "trak_25": "TRAK, 25 checkpoints",
    "trak_15": "TRAK, 15 checkpoints",
    "trak_5": "TRAK, 5 checkpoints",
    "trak_1": "TRAK, 1 checkpoint",
    "data_shapley": "Data Shapley (retraining)",
    "data_banzhaf": "Data Banzhaf (retraining)",
    "leave_one_out": "leave-one-out (retraining)",
    "empirical_influence": "empirical influence (retraining)",
    "datamodels": "datamodels (retraining)",
    "memorization": "memorization (retraining)",
    "less": "LESS",
    "tracin": "TracIn-CP",
    "representer": "representer points",
    "forgetting": "forgetting events, keep hard",
    "forgetting_easy": "forgetting events, keep easy",
    "el2n": "EL2N, keep hard",
    "el2n_easy": "EL2N, keep easy",
    "prototypes": "supervised prototypes, keep hard",
    "prototypes_easy": "supervised prototypes, keep easy",
    "loss": "own loss, keep low",
    "random": "random",
}

#: table 4 of the paper: CIFAR-10, ResNet18
PAPER_AUROC = {
    "in_run_first_sgd": "0.678 (0.045)",
    "in_run_second_sgd": "0.680 (0.048)",
    "knn_shapley": "0.76 (0.018)",
    "influence_cg": "0.654 (0.054)",
    "trak_25": "0.617 (0.021)",
    "trak_15": "0.609 (0.028)",
    "trak_5": "0.542 (0.025)",
    "trak_1": "0.511 (0.012)",
    "data_shapley": "0.582 (0.029)",
    "empirical_influence": "0.552 (0.017)",
    "less": "0.55 (0.032)",
    "datamodels": "0.52 (0.008)",
}

#: table 5, and for prototypes the public discussion: accuracy with the best 20, 40, 60, 80 %
PAPER_SELECTION = {
    "random": (0.350, 0.461, 0.525, 0.559),
    "influence_cg": (0.320, 0.450, 0.530, 0.580),
    "trak_1": (0.329, 0.443, 0.517, 0.572),
    "trak_5": (0.325, 0.445, 0.519, 0.572),
    "trak_15": (0.327, 0.446, 0.523, 0.573),
    "trak_25": (0.332, 0.443, 0.520, 0.578),
    "less": (0.314, 0.460, 0.541, 0.582),
    "data_shapley": (0.317, 0.468, 0.527, 0.570),
    "datamodels": (0.342, 0.465, 0.534, 0.559),
    "empirical_influence": (0.342, 0.466, 0.530, 0.568),
    "knn_shapley": (0.354, 0.478, 0.525, 0.563),
    "in_run_first_sgd": (0.344, 0.472, 0.541, 0.580),
    "in_run_second_sgd": (0.342, 0.473, 0.544, 0.580),
    "prototypes": (0.280, 0.390, 0.466, 0.516),
}
