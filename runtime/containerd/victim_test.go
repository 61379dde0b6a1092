package containerd

const victimEnv = "BEAM_TEST_VICTIM"

func victim() {}
