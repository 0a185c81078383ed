package guest

func buildForTest() {}
